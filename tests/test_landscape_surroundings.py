"""What surrounds a measurement (modes, defaults, autocast) changes neither it nor its results."""

from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from reference import same_bits, weights_of
from surroundings import AROUND
from torch import Tensor, nn

from torch_awp import landscape

POSITIONS = [-1.0, 0.0, 0.5]


class Setting:
    """A model with a tensor long enough to be gone through in pieces, and its landscape."""

    def __init__(self) -> None:
        self.model = nn.Sequential(nn.Linear(600, 300), nn.Tanh(), nn.Linear(300, 2))
        self.data = torch.randn(4, 600), torch.randn(4, 2)
        self.first = self.direction(1)
        self.second = self.direction(2)

    def loss(self, model: nn.Module) -> Tensor:
        with torch.autocast("cpu", enabled=False):  # the measurement is meant, not the loss
            return nn.functional.mse_loss(model(self.data[0]), self.data[1])

    def number(self, model: nn.Module) -> float:
        return self.loss(model).item()

    def direction(self, seed: int, **kwargs: Any) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return landscape.filter_normalized_direction(self.model, generator, **kwargs)


MEASUREMENTS = {
    "direction": lambda s: s.direction(3),
    "orthogonal": lambda s: s.direction(3, orthogonal_to=s.first),
    "cosine": lambda s: landscape.cosine(s.first, s.second),
    "curve": lambda s: landscape.loss_curve(s.model, s.loss, s.first, POSITIONS),
    "curve of numbers": lambda s: landscape.loss_curve(s.model, s.number, s.first, POSITIONS),
    "surface": lambda s: landscape.loss_surface(
        s.model, s.loss, (s.first, s.second), POSITIONS, POSITIONS
    ),
    "worst": lambda s: landscape.sharpness(s.model, s.loss, 0.1, steps=2),
    "worst in the box": lambda s: landscape.sharpness(
        s.model, s.loss, 0.1, steps=2, constraint="element"
    ),
    "average": lambda s: landscape.sharpness(s.model, s.number, 0.1, mode="average", samples=2),
}


def tensors_of(result: Any) -> list[Tensor]:
    if isinstance(result, dict):
        return list(result.values())
    return [result if isinstance(result, Tensor) else torch.tensor(result, dtype=torch.float64)]


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("measure", MEASUREMENTS)
def test_it_changes_nothing_and_marks_nothing(measure, around):
    setting = Setting()
    expected = tensors_of(MEASUREMENTS[measure](setting))
    before = weights_of(setting.model)
    surroundings: AbstractContextManager[Any] = AROUND[around]()
    with surroundings:
        result = MEASUREMENTS[measure](setting)
    found = tensors_of(result)
    assert [t.dtype for t in found] == [t.dtype for t in expected]
    assert same_bits(found, expected)
    assert not any(tensor.is_inference() for tensor in found)
    assert same_bits(weights_of(setting.model), before)
