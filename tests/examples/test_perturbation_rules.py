"""The settings' words for a perturbation become the wrapper's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vqa.training.perturbation import METHOD_NAMES, PerturbationRule, perturbed
from vqa.training.settings import Settings

# What the training scripts do unless told otherwise.
RELEASED_RULE = Settings().rule
DATA = Path(__file__).parents[1] / "data" / "weight_perturbation.npz"


def optimizer_of(model, method, rule):
    return perturbed(torch.optim.SGD(model.named_parameters(), lr=0.1), method, 0.01, 0, rule)


def moved(method, rule):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 1))
    optimizer = optimizer_of(model, method, rule)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(torch.randn(6, 4)).square().mean().backward()
    with optimizer.perturb():
        inside = {name: p.detach().clone() for name, p in model.named_parameters()}
    return {name for name in before if not before[name].equal(inside[name])}


@pytest.mark.parametrize("method", ["rwp", "awp"])
def test_the_released_rule_moves_what_is_named_weight(method):
    assert moved(method, RELEASED_RULE) == {"0.weight", "1.weight", "2.weight"}
    assert moved(method, PerturbationRule()) == {"0.weight", "2.weight"}


def test_the_released_rule_gives_the_released_numbers():
    numbers = np.load(DATA)
    name = "edge.weight"
    parameter = nn.Parameter(torch.from_numpy(numbers[f"f64/weight/{name}"]))
    optimizer = torch.optim.SGD([{"params": [(name, parameter)]}], lr=0.1)
    wrapped = perturbed(optimizer, "awp", 0.01, 0, RELEASED_RULE)
    parameter.grad = torch.from_numpy(numbers[f"f64/grad/{name}"])
    with wrapped.perturb():
        inside = parameter.detach().clone()

    expected = torch.from_numpy(numbers[f"f64/awp/0.01/{name}"])
    torch.testing.assert_close(inside, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_steps_are_ascent_steps_of_awp_alone(method):
    model = nn.Linear(2, 1)
    optimizer = optimizer_of(model, method, PerturbationRule(steps=3))

    expected = {"awp": 3, "rwp": None}.get(method, 1)
    assert getattr(optimizer, "steps", None) == expected


def test_plain_training_is_a_perturbation_of_size_zero():
    model = nn.Linear(2, 1)

    assert {
        group["perturb_gamma"]
        for group in optimizer_of(model, "plain", PerturbationRule()).param_groups
    } == {0.0}
