"""bf16 and fp16: parameters of half precision, autocast, what is left of gamma and who is told."""

import contextlib
import copy
import warnings

import pytest
import torch
from reference import batch, closure_for, loss_of, same_bits, small_net, weights_of
from torch import Tensor, nn

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation

HALF = [torch.bfloat16, torch.float16]
WRAPPERS = [AdversarialWeightPerturbation, RandomWeightPerturbation]


def matrix(dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 + seed)  # not the seed of a random perturbation
    return torch.randn(200, 300, generator=generator).to(dtype)


def parameter(dtype: torch.dtype) -> nn.Parameter:
    param = nn.Parameter(matrix(dtype, seed=0))
    param.grad = matrix(dtype, seed=1)
    return param


def wrapped(params, gamma: float, wrapper=AdversarialWeightPerturbation, **kwargs):
    return wrapper(torch.optim.SGD(params, lr=0.1), gamma, **kwargs)


def visit(optimizer, times: int = 1) -> None:
    for _ in range(times):
        with optimizer.perturb():
            pass


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_run_with_half_precision_parameters_follows_the_one_in_double(wrapper, dtype):
    model, data = small_net().to(dtype), batch(dtype)
    twin, wide_data = copy.deepcopy(model).double(), tuple(t.double() for t in data)
    losses = {}
    for module, inputs in [(model, data), (twin, wide_data)]:
        torch.manual_seed(0)
        optimizer = wrapped(module.parameters(), 0.05, wrapper)
        losses[module] = [optimizer.step(closure_for(module, inputs)).item() for _ in range(20)]
    assert losses[model] == pytest.approx(losses[twin], rel=0.1)
    assert losses[model][-1] < losses[model][0]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_gamma_below_half_the_spacing_warns_once_a_wrapper(wrapper, dtype):
    params = [parameter(dtype) for _ in range(2)]
    optimizer = wrapped(params, 0.49 * torch.finfo(dtype).eps, wrapper)
    message = f"gamma={optimizer.gamma:g} is below .* {dtype}: most"
    with pytest.warns(UserWarning, match=message) as caught:
        visit(optimizer, times=3)
    assert len(caught) == 1
    with pytest.warns(UserWarning, match=message):  # another wrapper tells again
        visit(wrapped(params, optimizer.gamma, wrapper))


def left_by_break(optimizer, model: nn.Module, data) -> None:
    for p in optimizer.passes():
        closure_for(model, data)()
        if not p.climbs:
            break


def left_by_return(optimizer, model: nn.Module, data) -> Tensor:
    for p in optimizer.passes():
        loss = closure_for(model, data)()
        if not p.climbs:
            return loss
    raise AssertionError


def left_by_an_exception(optimizer, model: nn.Module, data) -> None:
    closure_for(model, data)()
    with contextlib.suppress(ValueError), optimizer.perturb():
        raise ValueError


@pytest.mark.parametrize("leave", [left_by_break, left_by_return, left_by_an_exception])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_gamma_below_half_the_spacing_warns_where_the_end_is_not_reached(wrapper, leave):
    model = small_net(torch.bfloat16)
    optimizer = wrapped(model.parameters(), 1e-4, wrapper)
    with pytest.warns(UserWarning, match=r"gamma=0\.0001 is below") as caught:
        leave(optimizer, model, batch(torch.bfloat16))
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize("settings", [{"steps": 10}, {"step_size": 1e-3}])
def test_steps_below_half_the_spacing_warn_though_gamma_is_above(settings):
    optimizer = wrapped([parameter(torch.bfloat16)], 0.01, **settings)
    with pytest.warns(UserWarning, match=r"gamma=0\.01 in steps of 0\.001 is below"):
        visit(optimizer)


@pytest.mark.parametrize(
    ("dtype", "gamma"),
    [
        (torch.bfloat16, 0.51 * torch.finfo(torch.bfloat16).eps),
        (torch.float16, 0.51 * torch.finfo(torch.float16).eps),
        (torch.bfloat16, 0.0),
        (torch.float32, 1e-12),
        (torch.float64, 1e-12),
    ],
)
def test_no_warning_where_gamma_is_representable_or_zero(dtype, gamma):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        visit(wrapped([parameter(dtype)], gamma))


def test_only_groups_that_move_are_warned_about():
    groups = [
        {"params": [parameter(torch.bfloat16)], "perturb_gamma": 0.0},
        {"params": [nn.Parameter(torch.ones(3, dtype=torch.bfloat16))]},
        {"params": [parameter(torch.float32)]},
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        visit(wrapped(groups, 1e-4))


@pytest.mark.parametrize("dtype", HALF)
def test_a_forward_in_the_same_autocast_region_sees_where_the_weights_are(dtype):
    """Autocast keeps casts of the weights for a region; in-place writes do not drop them."""
    model, data = small_net(torch.float32), batch(torch.float32)
    optimizer = wrapped(model.parameters(), 0.5, steps=2)
    with torch.autocast("cpu", dtype=dtype):
        loss = loss_of(model, data)
        loss.backward()
        measured = [loss.item()]
        places = [weights_of(model)]
        with optimizer.perturb():
            places.append(weights_of(model))
            measured.append(loss_of(model, data).item())
            optimizer.ascend()
            places.append(weights_of(model))
            measured.append(loss_of(model, data).item())
        places.append(weights_of(model))
        measured.append(loss_of(model, data).item())
    for loss_there, weights in zip(measured, places, strict=True):
        fresh = copy.deepcopy(model)
        with torch.no_grad():
            for param, weight in zip(fresh.parameters(), weights, strict=True):
                param.copy_(weight)
        with torch.autocast("cpu", dtype=dtype):
            assert loss_there == loss_of(fresh, data).item()
    assert measured[0] == measured[3]
    assert len(set(measured)) == 3


def autocast_run(in_one_region: bool, wrapper) -> list[Tensor]:
    torch.manual_seed(0)
    model, data = small_net(torch.float32), batch(torch.float32)
    optimizer = wrapped(model.parameters(), 0.1, wrapper)

    def closure() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, data)
        loss.backward()
        return loss

    for _ in range(5):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=in_one_region):
            optimizer.step(closure)
    return weights_of(model)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_whole_step_in_one_autocast_region_is_bitwise_that_of_separate_ones(wrapper):
    assert same_bits(autocast_run(True, wrapper), autocast_run(False, wrapper))


def test_autocast_keeps_the_share_of_a_tiny_move_along_its_direction():
    """Float32 weights lie between the numbers of bf16: rounding hides a move, but on average not.

    The same move of bf16 parameters is lost to a great part, see the diagnostic above.
    """
    weight, along = matrix(torch.float32, seed=0), matrix(torch.float32, seed=1)
    param = nn.Parameter(weight.clone())
    param.grad = along
    with wrapped([param], 1e-3).perturb():
        v = param.detach() - weight
        seen = param.detach().bfloat16().float() - weight.bfloat16().float()
    assert (seen * v).sum() / v.square().sum() == pytest.approx(1.0, abs=0.1)
