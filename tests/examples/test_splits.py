"""Random splits are the published ones, and a validation part leaks nothing."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqa.datasets.splits import hold_out_validation, split

PUBLISHED = np.load(Path(__file__).parents[1] / "data" / "splits.npz")
COUNTS = (585, 1040, 1195, 1200)


def published_order(samples: int, seed: int) -> list[int]:
    return PUBLISHED[f"N{samples}/seed{seed}"].tolist()


@pytest.mark.parametrize("samples", COUNTS)
@pytest.mark.parametrize(
    ("protocol", "index", "seed"),
    [
        ("paper", 0, 42),
        *(("fast-vqa", index, 42 * (index + 1)) for index in range(10)),
        *(("sama", index, 123 * index) for index in range(10)),
    ],
)
def test_a_split_is_the_published_one(samples, protocol, index, seed):
    train, test = split(samples, index, protocol)

    assert [*train, *test] == published_order(samples, seed)
    assert len(train) == int(0.8 * samples)


@given(st.integers(2, 300), st.integers(0, 9), st.sampled_from(["fast-vqa", "sama"]))
def test_every_sample_is_in_one_part(samples, index, protocol):
    train, test = split(samples, index, protocol)

    assert sorted(train + test) == list(range(samples))
    assert train
    assert test


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 0, "paper"), "samples: expected at least 2, got 1"),
        ((9, 1, "paper"), "index: expected 0 to 0 for the protocol 'paper', got 1"),
        ((9, 10, "sama"), "index: expected 0 to 9 for the protocol 'sama', got 10"),
        ((9, -1, "fast-vqa"), "index: expected 0 to 9"),
        ((9, 0, "mine"), "protocol: expected one of paper, fast-vqa, sama, got 'mine'"),
    ],
)
def test_a_split_that_does_not_exist_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        split(*arguments)


@given(st.integers(5, 200), st.floats(0.01, 0.5), st.integers(0, 5))
def test_validation_is_a_share_of_the_training_part(samples, share, seed):
    train = tuple(range(100, 100 + samples))

    kept, validation = hold_out_validation(train, share, seed)

    assert sorted(kept + validation) == list(train)
    assert list(kept) == sorted(kept)
    assert len(validation) == max(2, round(share * samples))


def test_validation_depends_on_the_seed_alone():
    train = tuple(range(50))

    assert hold_out_validation(train, 0.2, 7) == hold_out_validation(train, 0.2, 7)
    assert hold_out_validation(train, 0.2, 7) != hold_out_validation(train, 0.2, 8)


@pytest.mark.parametrize(
    ("samples", "share", "message"),
    [
        (10, 0.0, "share: expected more than 0 and less than 1, got 0.0"),
        (10, 1.0, "share: expected more than 0"),
        (3, 0.1, "train: expected at least two samples beside 2 for validation, got 3"),
    ],
)
def test_a_validation_part_that_leaves_nothing_to_train_on_is_an_error(samples, share, message):
    with pytest.raises(ValueError, match=message):
        hold_out_validation(tuple(range(samples)), share)
