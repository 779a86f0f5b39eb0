"""Bad values are errors that name the argument and the value."""

import math
import re

import pytest
import torch
from reference import batch, loss_of, small_net
from torch import nn

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation

WRAPPERS = [AdversarialWeightPerturbation, RandomWeightPerturbation]


def sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD(small_net().parameters(), lr=0.1)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("gamma", -1e-4),
        ("gamma", math.nan),
        ("gamma", math.inf),
        ("gamma", "0.1"),
        ("gamma", None),
        ("constraint", "ball"),
        ("interval", 0),
        ("interval", 1.5),
        ("start_step", -1),
        ("start_step", None),
        ("select", "weight"),
        ("epsilon", -1.0),
    ],
)
def test_a_bad_value(wrapper, argument, value):
    with pytest.raises(ValueError, match=f"{argument}.*{re.escape(repr(value))}"):
        wrapper(sgd(), **{argument: value})


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("steps", 0),
        ("steps", 1.0),
        ("step_size", 0.0),
        ("step_size", -0.1),
        ("step_size", math.nan),
        ("ascent", "next"),
    ],
)
def test_a_bad_value_of_the_adversarial_wrapper(argument, value):
    with pytest.raises(ValueError, match=f"{argument}.*{re.escape(repr(value))}"):
        AdversarialWeightPerturbation(sgd(), **{argument: value})


def test_a_bad_generator():
    with pytest.raises(ValueError, match=r"generator.*42"):
        RandomWeightPerturbation(sgd(), generator=42)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_class_instead_of_an_optimizer(wrapper):
    with pytest.raises(
        TypeError, match=r"must be a constructed torch\.optim\.Optimizer.* got <class .*SGD"
    ):
        wrapper(torch.optim.SGD)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_something_else_than_an_optimizer(wrapper):
    with pytest.raises(TypeError, match=r"torch\.optim\.Optimizer.* got Linear"):
        wrapper(nn.Linear(2, 2))


@pytest.mark.parametrize("outer", WRAPPERS)
@pytest.mark.parametrize("inner", WRAPPERS)
def test_a_wrapper_around_a_wrapper(outer, inner):
    with pytest.raises(ValueError, match=f"got {inner.__name__}"):
        outer(inner(sgd()))


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_select_without_names_says_how_to_get_them(wrapper):
    with pytest.raises(ValueError, match=r"select=.*SGD\(model\.named_parameters\(\)"):
        wrapper(sgd(), select=lambda name, param: True)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "high", None])
def test_a_bad_live_gamma_is_found_before_anything_moves(value):
    model, data = small_net(), batch()
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD(model.parameters(), lr=0.1))
    loss_of(model, data).backward()
    optimizer.param_groups[0]["perturb_gamma"] = value
    with (
        pytest.raises(ValueError, match=r"param_groups\[0\]\['perturb_gamma'\].*" + repr(value)),
        optimizer.perturb(),
    ):
        pass


def test_defaults_are_those_of_the_paper():
    optimizer = AdversarialWeightPerturbation(sgd())
    assert (optimizer.gamma, optimizer.steps, optimizer.constraint) == (1e-4, 1, "layer")
    assert RandomWeightPerturbation(sgd()).gamma == 1e-4
