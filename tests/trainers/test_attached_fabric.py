"""Lightning Fabric: attached before its set-up, and a loop of passes through what it returns."""

from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from plain_loop import WRAPS, Regressor, build, by_hand, loader, plain_run, weights
from tiers import first_fast
from torch import nn


def set_up(wrap: str, attached: bool, pieces: int = 1, **options: Any) -> tuple[Any, ...]:
    fabric = Fabric(accelerator="cpu", devices=1, **options)
    plain = Regressor()
    optimizer, scheduler = build(wrap, plain)
    if attached:
        optimizer.attach(plain)
    model, optimizer = fabric.setup(plain, optimizer)
    return fabric, plain, model, optimizer, scheduler, fabric.setup_dataloaders(loader(pieces))


def train(wrap: str, pieces: int = 1, **options: Any) -> nn.Module:
    fabric, plain, model, optimizer, scheduler, batches = set_up(wrap, True, pieces, **options)
    for number, (x, y) in enumerate(batches, 1):
        accumulating = number % pieces > 0
        with fabric.no_backward_sync(model, enabled=accumulating):
            fabric.backward(model(x, labels=y)["loss"] / pieces)
        if not accumulating:
            fabric.clip_gradients(model, optimizer, max_norm=0.05)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
    return plain


@pytest.mark.parametrize("wrap", first_fast(WRAPS))
def test_fabric_accumulates_and_clips_like_a_loop_by_hand(wrap):
    measured = weights(train(wrap, pieces=2))
    torch.testing.assert_close(measured, by_hand(wrap, pieces=2, clip=0.05), rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_fabric_in_bf16_equals_a_loop_by_hand():
    measured = weights(train("awp", precision="bf16-mixed"))
    expected = by_hand("awp", clip=0.05, dtype=torch.bfloat16)
    torch.testing.assert_close(measured, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("wrap", first_fast(WRAPS))
def test_a_loop_of_passes_is_that_of_the_optimizer_within(wrap):
    fabric, plain, model, optimizer, scheduler, batches = set_up(wrap, False)
    for x, y in batches:
        for _ in optimizer.optimizer.passes():
            optimizer.zero_grad()
            fabric.backward(model(x, labels=y)["loss"])
        optimizer.step()
        scheduler.step()
    torch.testing.assert_close(weights(plain), plain_run(wrap), rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_a_checkpoint_of_fabric_brings_everything_back(tmp_path):
    fabric, plain, model, optimizer, _, batches = set_up("awp-update", True)
    for x, y in batches:
        optimizer.zero_grad()
        fabric.backward(model(x, labels=y)["loss"])
        optimizer.step()
    fabric.save(tmp_path / "last.ckpt", {"model": model, "optimizer": optimizer})
    again, twin, other, fresh, *_ = set_up("awp-update", True)
    again.load(tmp_path / "last.ckpt", {"model": other, "optimizer": fresh})
    torch.testing.assert_close(fresh.state_dict(), optimizer.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(weights(twin), weights(plain), rtol=0, atol=0)
