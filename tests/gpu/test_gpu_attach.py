"""An attached module on an accelerator, whose backward pass runs in threads of the engine."""

import copy

import pytest
import torch
from on_device import MODES, equal, on_host, sgd, step_by_loop, task
from torch import nn
from torch.utils.checkpoint import checkpoint


def loss_to(target):
    return lambda output, *_: nn.functional.mse_loss(output, target)


@pytest.mark.parametrize("mode", MODES)
def test_attach_equals_the_loop_to_the_bit(device, mode):
    model, (x, y) = task(device)
    twin = copy.deepcopy(model)
    optimizer, by_passes = MODES[mode](sgd(model)), MODES[mode](sgd(twin))
    optimizer.attach(model, loss_to(y))
    for _ in range(4):
        home = on_host(list(model.parameters()))
        optimizer.zero_grad()
        loss = loss_to(y)(model(x))
        loss.backward()
        assert equal(list(model.parameters()), home)
        assert optimizer.current_pass is None
        optimizer.step()
        step_by_loop(optimizer=by_passes, model=twin, data=(x, y))
    assert equal(list(model.parameters()), list(twin.parameters()))


def test_attach_restores_after_checkpoints_recomputed_in_the_engines_threads(device):
    if not hasattr(torch, device.type):
        pytest.skip(f"torch's checkpoints need a module torch.{device.type}")
    model, (x, y) = task(device)
    twin = copy.deepcopy(model)
    optimizers = [MODES["awp"](sgd(each)) for each in (model, twin)]
    for each, optimizer in zip((model, twin), optimizers, strict=True):
        optimizer.attach(each, loss_to(y))
    home = on_host(list(model.parameters()))
    loss_to(y)(checkpoint(model, x, use_reentrant=False)).backward()
    loss_to(y)(twin(x)).backward()
    assert equal(list(model.parameters()), home)
    for optimizer in optimizers:
        optimizer.step()
    assert equal(list(model.parameters()), list(twin.parameters()))


def test_attach_with_a_grad_scaler_and_an_overflow(device):
    model, (x, y) = task(device)
    optimizer = MODES["awp"](sgd(model))
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**8)
    optimizer.attach(model, lambda output, *_: scaler.scale(loss_to(y)(output)))
    home = on_host(list(model.parameters()))
    for factor, moves in ((float("inf"), False), (1.0, True)):
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=torch.float16):
            loss = loss_to(y)(model(x))
        scaler.scale(loss * factor).backward()
        assert equal(list(model.parameters()), home)
        scaler.step(optimizer)
        scaler.update()
        assert equal(list(model.parameters()), home) != moves
