"""Settings that make no sense are refused by name."""

import pytest

from vqa.training.settings import Settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
        ({"batch": 1}, "batch: expected at least 2, since losses compare samples, got 1"),
        ({"linear_epochs": -1}, "linear_epochs: expected at least 0"),
        ({"gamma": float("nan")}, "gamma: expected a finite number from 0, got nan"),
        ({"weight_decay": -0.1}, "weight_decay: expected a finite number from 0"),
        ({"warm_up_epochs": -1.0}, "warm_up_epochs: expected a finite number from 0"),
        ({"landscape_batches": 0}, "landscape_batches: expected at least 1"),
        ({"seed": -1}, "seed: expected at least 0"),
        ({"ema": 1.0}, "ema: expected at least 0 and below 1, got 1.0"),
        ({"validation_share": 1.5}, "validation_share: expected at least 0 and below 1, got 1.5"),
        ({"splits": ()}, "splits: expected one or more, each once"),
        ({"splits": (1, 1)}, "splits: expected one or more, each once"),
    ],
)
def test_a_bad_value_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Settings(**change)
