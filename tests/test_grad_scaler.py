"""fp16 GradScaler in the block form, with clipping, fused bases and overflows."""

import copy

import pytest
import torch
from reference import batch, loss_of, same_bits, small_net, weights_of
from torch import nn

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation

BASES = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "SGD-fused": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, fused=True),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.01),
    "AdamW-fused": lambda params: torch.optim.AdamW(params, lr=0.01, fused=True),
}


def scaled_step(model, data, optimizer, scaler, clip: float | None = None) -> None:
    optimizer.zero_grad()
    scaler.scale(loss_of(model, data)).backward()
    with optimizer.perturb():
        optimizer.zero_grad()
        scaler.scale(loss_of(model, data)).backward()
    if clip is not None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    scaler.step(optimizer)
    scaler.update()


def plain_step(model, data, optimizer, clip: float | None = None) -> None:
    optimizer.zero_grad()
    loss_of(model, data).backward()
    with optimizer.perturb():
        optimizer.zero_grad()
        loss_of(model, data).backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()


@pytest.fixture(params=BASES)
def build(request):
    return BASES[request.param]


@pytest.mark.parametrize("clip", [None, 0.05])
def test_a_scaled_run_equals_the_unscaled_one(build, clip):
    model, data = small_net(torch.float32), batch(torch.float32)
    twin = copy.deepcopy(model)
    scaled = AdversarialWeightPerturbation(build(model.parameters()), 0.1)
    unscaled = AdversarialWeightPerturbation(build(twin.parameters()), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    for _ in range(4):
        scaled_step(model, data, scaled, scaler, clip)
        plain_step(twin, data, unscaled, clip)
    for param, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(param, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda base: AdversarialWeightPerturbation(base, 0.1, interval=2),
        lambda base: AdversarialWeightPerturbation(base, 0.1, ascent="update", interval=2),
        lambda base: RandomWeightPerturbation(base, 0.1, interval=2),
    ],
)
def test_an_overflow_skips_the_step_and_the_next_one_is_fine(build, wrap):
    model, data = small_net(torch.float32), batch(torch.float32)
    optimizer = wrap(build(model.parameters()))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    before = weights_of(model)
    scaled_step(model, (data[0] * float("inf"), data[1]), optimizer, scaler)
    assert same_bits(weights_of(model), before)
    assert scaler.get_scale() == 2.0**15
    assert optimizer.param_groups[0]["perturb_step"] == 0
    scaled_step(model, data, optimizer, scaler)
    assert not same_bits(weights_of(model), before)
    assert all(w.isfinite().all() for w in weights_of(model))
    assert optimizer.param_groups[0]["perturb_step"] == 1


def test_an_overflow_in_the_first_pass_alone_still_steps(build):
    """The clean gradient only gives a direction: infinite, it moves nothing, and all goes on."""
    model, data = small_net(torch.float32), batch(torch.float32)
    twin = copy.deepcopy(model)
    optimizer = AdversarialWeightPerturbation(build(model.parameters()), 0.1)
    plain = build(twin.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    for param in model.parameters():
        param.grad = torch.full_like(param, float("inf"))
    with optimizer.perturb():
        optimizer.zero_grad()
        scaler.scale(loss_of(model, data)).backward()
    scaler.step(optimizer)
    loss_of(twin, data).backward()
    plain.step()
    for param, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(param, expected, rtol=1e-6, atol=1e-7)


def test_float16_autocast_trains():
    model, data = small_net(torch.float32), batch(torch.float32)
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD(model.parameters(), lr=0.5), 0.05)
    scaler = torch.amp.GradScaler("cpu")
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = loss_of(model, data)
        scaler.scale(loss).backward()
        with optimizer.perturb():
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.float16):
                scaler.scale(loss_of(model, data)).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_scaler_itself_refuses_closures():
    model, data = small_net(torch.float32), batch(torch.float32)
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD(model.parameters(), lr=0.1), 0.1)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss_of(model, data)).backward()
    with pytest.raises(RuntimeError, match="Closure use is not currently supported"):
        scaler.step(optimizer, closure=lambda: None)
