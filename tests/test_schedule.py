"""When a step perturbs: interval, start_step, live gammas and how steps are counted."""

import copy

import pytest
import torch
from reference import batch, closure_for, loss_of, same_bits, small_net, weights_of
from torch import nn

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation

CALLS_WHEN_PERTURBED = 2


def awp(model: nn.Module, **kwargs: object) -> AdversarialWeightPerturbation:
    kwargs.setdefault("gamma", 0.1)
    return AdversarialWeightPerturbation(torch.optim.SGD(model.parameters(), lr=0.1), **kwargs)


@pytest.mark.parametrize("interval", [1, 2, 3])
@pytest.mark.parametrize("start_step", [0, 1, 4])
def test_steps_that_perturb(interval, start_step):
    model, data = small_net(), batch()
    optimizer = awp(model, interval=interval, start_step=start_step)
    perturbed = []
    for _ in range(10):
        losses: list[float] = []
        optimizer.step(closure_for(model, data, losses))
        perturbed.append(len(losses) == CALLS_WHEN_PERTURBED)
    expected = [t >= start_step and (t - start_step) % interval == 0 for t in range(10)]
    assert perturbed == expected


def test_block_and_closure_count_the_same_steps():
    model, data = small_net(), batch()
    twin = copy.deepcopy(model)
    by_closure, by_block = awp(model, interval=3), awp(twin, interval=3)
    for _ in range(7):
        by_closure.step(closure_for(model, data))
        closure_for(twin, data)()
        with by_block.perturb():
            closure_for(twin, data)()
        by_block.step()
    assert same_bits(weights_of(model), weights_of(twin))


def test_a_step_that_does_not_perturb_is_the_bases():
    model, data = small_net(), batch()
    twin = copy.deepcopy(model)
    optimizer, plain = awp(model, start_step=5), torch.optim.SGD(twin.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.step(closure_for(model, data))
        plain.step(closure_for(twin, data))
    assert same_bits(weights_of(model), weights_of(twin))


def test_ascend_on_a_step_that_does_not_perturb_moves_nothing():
    model, data = small_net(), batch()
    optimizer = awp(model, start_step=5)
    loss_of(model, data).backward()
    before = weights_of(model)
    with optimizer.perturb():
        optimizer.ascend()
        assert same_bits(weights_of(model), before)


def test_failed_steps_do_not_count():
    model, data = small_net(), batch()
    optimizer = awp(model, interval=2)

    def failing():
        raise ValueError("no loss")

    with pytest.raises(ValueError, match="no loss"):
        optimizer.step(failing)
    losses: list[float] = []
    optimizer.step(closure_for(model, data, losses))
    assert len(losses) == CALLS_WHEN_PERTURBED  # still step 0


def test_blocks_do_not_count():
    model, data = small_net(), batch()
    optimizer = awp(model, interval=2)
    loss_of(model, data).backward()
    for _ in range(3):
        with optimizer.perturb():
            pass
    losses: list[float] = []
    optimizer.step(closure_for(model, data, losses))
    assert len(losses) == CALLS_WHEN_PERTURBED


def moves(optimizer, params) -> list[float]:
    before = [p.detach().clone() for p in params]
    with optimizer.perturb():
        return [
            round(((p - w).norm() / w.norm()).item(), 6)
            for p, w in zip(params, before, strict=True)
        ]


def two_groups() -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    params = [nn.Parameter(torch.randn(3, 3).double()) for _ in range(3)]
    for param in params:
        param.grad = torch.randn(3, 3).double()
    groups = [
        {"params": params[:1]},
        {"params": params[1:2], "perturb_gamma": 0.02},
        {"params": params[2:], "perturb_gamma": 0.0},
    ]
    return params, torch.optim.SGD(groups, lr=0.1)


@pytest.mark.parametrize("wrapper", [AdversarialWeightPerturbation, RandomWeightPerturbation])
def test_groups_override_gamma_and_zero_disables(wrapper):
    params, base = two_groups()
    assert moves(wrapper(base, 0.1), params) == [0.1, 0.02, 0.0]


@pytest.mark.parametrize("wrapper", [AdversarialWeightPerturbation, RandomWeightPerturbation])
def test_the_groups_gamma_is_the_live_value(wrapper):
    params, base = two_groups()
    optimizer = wrapper(base, 0.1)
    for group, gamma in zip(optimizer.param_groups, [0.3, 0.0, 0.05], strict=True):
        group["perturb_gamma"] = gamma
    assert moves(optimizer, params) == [0.3, 0.0, 0.05]


def test_the_default_step_size_follows_the_groups_gamma():
    params, base = two_groups()
    optimizer = AdversarialWeightPerturbation(base, 0.1, steps=4)
    assert moves(optimizer, params) == [0.025, 0.005, 0.0]


def test_an_added_group_gets_the_wrappers_gamma_or_brings_its_own():
    params, base = two_groups()
    optimizer = RandomWeightPerturbation(base, 0.1)
    added = [nn.Parameter(torch.randn(2, 2).double()) for _ in range(2)]
    optimizer.add_param_group({"params": added[:1]})
    optimizer.add_param_group({"params": added[1:], "perturb_gamma": 0.4})
    assert moves(optimizer, [*params, *added]) == [0.1, 0.02, 0.0, 0.1, 0.4]


def test_a_group_added_to_the_base_perturbs_too():
    params, base = two_groups()
    optimizer = RandomWeightPerturbation(base, 0.1)
    added = nn.Parameter(torch.randn(2, 2).double())
    base.add_param_group({"params": [added]})
    assert moves(optimizer, [*params, added])[-1] == 0.1


def test_one_closure_call_where_every_gamma_is_zero():
    model, data, losses = small_net(), batch(), []
    optimizer = awp(model)
    optimizer.param_groups[0]["perturb_gamma"] = 0.0
    optimizer.step(closure_for(model, data, losses))
    assert len(losses) == 1
