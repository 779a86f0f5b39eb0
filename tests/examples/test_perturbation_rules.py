"""The settings' words for a perturbation become the wrapper's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vqa.training.optim import perturbed
from vqa.training.settings import Settings

DATA = Path(__file__).parents[1] / "data" / "weight_perturbation.npz"


def optimizer_of(model, perturb, **changes):
    settings = Settings(perturb=perturb, gamma=0.01, **changes)
    return perturbed(torch.optim.SGD(model.named_parameters(), lr=0.1), settings)


def moved(perturb, **changes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 1))
    optimizer = optimizer_of(model, perturb, **changes)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(torch.randn(6, 4)).square().mean().backward()
    with optimizer.perturb():
        inside = {name: p.detach().clone() for name, p in model.named_parameters()}
    return {name for name in before if not before[name].equal(inside[name])}


@pytest.mark.parametrize("perturb", ["rwp", "awp"])
def test_the_released_rule_moves_what_is_named_weight(perturb):
    assert moved(perturb) == {"0.weight", "1.weight", "2.weight"}
    assert moved(perturb, named_weight=False) == {"0.weight", "2.weight"}


def test_the_released_rule_gives_the_released_numbers():
    numbers = np.load(DATA)
    name = "edge.weight"
    parameter = nn.Parameter(torch.from_numpy(numbers[f"f64/weight/{name}"]))
    optimizer = torch.optim.SGD([{"params": [(name, parameter)]}], lr=0.1)
    wrapped = perturbed(optimizer, Settings(perturb="awp", gamma=0.01))
    parameter.grad = torch.from_numpy(numbers[f"f64/grad/{name}"])
    with wrapped.perturb():
        inside = parameter.detach().clone()

    expected = torch.from_numpy(numbers[f"f64/awp/0.01/{name}"])
    torch.testing.assert_close(inside, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("perturb", ["none", "rwp", "awp", "awp-update"])
def test_steps_are_ascent_steps_of_awp_alone(perturb):
    optimizer = optimizer_of(nn.Linear(2, 1), perturb, steps=3)

    expected = {"awp": 3, "rwp": None}.get(perturb, 1)
    assert getattr(optimizer, "steps", None) == expected


def test_plain_training_is_a_perturbation_of_size_zero():
    groups = optimizer_of(nn.Linear(2, 1), "none").param_groups

    assert {group["perturb_gamma"] for group in groups} == {0.0}
