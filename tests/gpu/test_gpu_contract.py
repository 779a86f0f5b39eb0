"""Where the weights go and that they come home, on an accelerator."""

import copy
import math

import pytest
import torch
from on_device import (
    GAMMA,
    MODES,
    ONE_DIRECTION,
    equal,
    on_host,
    sgd,
    skip_unless_supported,
    step_by_loop,
    task,
    trained,
)
from reference import ascent, closure_for
from torch import nn
from torch.func import functional_call, grad

from torch_awp import AdversarialWeightPerturbation

FLAGS = [{"foreach": False}, {"foreach": True}, {"fused": True}, {"capturable": True}]
BASES = [
    (cls, flags)
    for cls in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
    for flags in FLAGS
    if not (cls is torch.optim.SGD and "capturable" in flags)
]
# Of float32 beside float64, over a few steps of a small network.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", MODES)
def test_weights_are_away_inside_and_home_after_the_loop_to_the_bit(device, mode, dtype):
    model, data = task(device, dtype)
    optimizer = MODES[mode](torch.optim.SGD(model.parameters(), lr=0.1))
    closure = closure_for(model, data)
    step_by_loop(optimizer, model, data)  # before it some modes know no direction
    params = list(model.parameters())
    home, places = on_host(params), [param.data_ptr() for param in params]
    for p in optimizer.passes():
        closure()
        assert p.perturbed == (not equal(params, home))
    assert p.perturbed
    assert equal(params, home)
    assert [param.data_ptr() for param in params] == places


@pytest.mark.parametrize("mode", MODES)
def test_weights_are_home_after_an_exception(device, mode):
    model, data = task(device)
    optimizer = MODES[mode](sgd(model))
    step_by_loop(optimizer, model, data)
    home = on_host(list(model.parameters()))

    def interrupted() -> None:
        for p in optimizer.passes():
            closure_for(model, data)()
            if p.perturbed:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert equal(list(model.parameters()), home)


@pytest.mark.parametrize("constraint", ["layer", "element"])
@pytest.mark.parametrize(("steps", "step_size"), [(1, None), (3, None), (3, 0.04), (1, 1.0)])
def test_the_ascent_is_that_of_the_float64_reference(device, constraint, steps, step_size):
    rule = {"steps": steps, "step_size": step_size, "constraint": constraint}
    double, data = task(torch.device("cpu"), torch.float64)
    model = copy.deepcopy(double).to(device, torch.float32)
    names = [name for name, _ in double.named_parameters()]

    def loss_at(params):
        return nn.functional.mse_loss(functional_call(double, params, data[0]), data[1])

    def gradients_at(weights):
        return grad(loss_at)(dict(zip(names, weights, strict=True))).values()

    expected = ascent(list(double.parameters()), gradients_at, 0.05, **rule)
    optimizer = AdversarialWeightPerturbation(sgd(model), 0.05, **rule)
    closure = closure_for(model, tuple(t.to(device, torch.float32) for t in data))
    for p in optimizer.passes():
        if not p.climbs:
            measured = on_host(list(model.parameters()))
        closure()
    for weight, reference in zip(measured, expected, strict=True):
        torch.testing.assert_close(weight.double(), reference, **CLOSE)


def test_a_single_pass_climbs_along_the_last_update(device):
    model, data = task(device)
    optimizer = AdversarialWeightPerturbation(sgd(model), GAMMA, ascent="update")
    before = on_host(list(model.parameters()))
    step_by_loop(optimizer, model, data)
    home = on_host(list(model.parameters()))
    for _ in optimizer.passes():
        away = on_host(list(model.parameters()))
        closure_for(model, data)()
    for w, v, earlier in zip(home, away, before, strict=True):
        if w.ndim > 1:
            update = (w - earlier).double()
            expected = w.double() + GAMMA * w.double().norm() * update / update.norm()
            torch.testing.assert_close(v.double(), expected, **CLOSE)


@pytest.mark.parametrize("constraint", ["layer", "element"])
def test_random_noise_is_as_long_as_asked_and_drawn_anew(device, constraint):
    model, data = task(device)
    optimizer = MODES["rwp" if constraint == "layer" else "rwp, element"](sgd(model))
    home = [w.double() for w in on_host(list(model.parameters()))]
    seen = []
    for _ in range(2):
        for _ in optimizer.passes():
            closure_for(model, data)()
            away = [w.double() for w in on_host(list(model.parameters()))]
        seen.append([a - w for a, w in zip(away, home, strict=True)])
    for w, first, second in zip(home, *seen, strict=True):
        if w.ndim == 1:
            assert not first.any()
        elif constraint == "layer":
            assert first.norm().item() == pytest.approx(GAMMA * w.norm().item(), rel=1e-4)
        else:
            assert (first.abs() <= GAMMA * w.abs() * (1 + 1e-4) + 1e-7).all()
        assert w.ndim == 1 or not torch.equal(first, second)


@pytest.mark.parametrize("mode", ["awp", "awp, element", "update"])
@pytest.mark.parametrize(("cls", "flags"), BASES)
def test_every_kind_of_base_steps_as_the_plain_one_in_float64(device, mode, cls, flags):
    skip_unless_supported(flags, device)
    double, data = task(torch.device("cpu"), torch.float64)
    model = copy.deepcopy(double).to(device, torch.float32)
    for net, own in [(double, {}), (model, flags)]:
        place = next(net.parameters())
        optimizer = MODES[mode](cls(net.parameters(), lr=0.01, **own))
        for _ in range(4):
            step_by_loop(optimizer, net, tuple(t.to(place.device, place.dtype) for t in data))
    for weight, reference in zip(model.parameters(), double.parameters(), strict=True):
        torch.testing.assert_close(weight.detach().cpu().double(), reference.detach(), **CLOSE)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("constraint", ["layer", "element"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tensor_whose_gradient_is_not_finite_stays_and_the_others_move(
    device, value, constraint, dtype
):
    params = [nn.Parameter(torch.randn(6, 5, device=device, dtype=dtype)) for _ in range(3)]
    for param in params:
        param.grad = torch.randn_like(param)
    params[1].grad[2, 3] = value
    home = on_host(params)
    optimizer = AdversarialWeightPerturbation(
        torch.optim.SGD(params, lr=0.1), GAMMA, constraint=constraint
    )
    with optimizer.perturb():
        moved = [not equal([param], [weight]) for param, weight in zip(params, home, strict=True)]
    assert moved == [True, False, True]
    assert equal(params, home)


@pytest.mark.parametrize("mode", ONE_DIRECTION)
def test_memory_formats_stay_and_change_no_result(device, mode):
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 4, 3), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(4 * 6 * 6, 2)).to(device)
    data = (torch.randn(5, 3, 8, 8, device=device), torch.randn(5, 2, device=device))
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    optimizer = MODES[mode](sgd(last))
    strides = [param.stride() for param in last.parameters()]
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for _ in range(3):
            step_by_loop(optimizer, last, data)
        expected = trained(MODES[mode], model, data, steps=3)
    assert [param.stride() for param in last.parameters()] == strides
    torch.testing.assert_close(on_host(list(last.parameters())), expected, **CLOSE)
