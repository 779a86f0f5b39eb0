"""Hugging Face Accelerate: the loop through `optimizer.optimizer`, with its accumulation."""

from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from plain_loop import (
    BATCH,
    WRAPS,
    assert_same_weights,
    build,
    dataset,
    loader,
    network,
    plain_run,
    weights,
)
from torch import nn
from torch.utils.data import DataLoader

from torch_awp import AdversarialWeightPerturbation


@pytest.fixture(autouse=True)
def _forget_the_last_accelerator() -> Iterator[None]:
    """Its state is shared by a whole process and holds the precision of the first."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def accelerated_run(wrap: str, pieces: int = 1, clip: float | None = None, **options):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=pieces, **options)
    plain = network()
    model, optimizer, batches, scheduler = accelerator.prepare(
        plain, *_with_loader(*build(wrap, plain), pieces)
    )

    def backward(x, y) -> None:
        accelerator.backward(nn.functional.mse_loss(model(x), y))

    held = []
    for batch in batches:
        held.append(batch)
        with accelerator.accumulate(model):
            if accelerator.sync_gradients:
                for _ in optimizer.optimizer.passes():
                    optimizer.zero_grad()
                    for piece in held:
                        backward(*piece)
                if clip is not None:
                    accelerator.clip_grad_norm_(model.parameters(), clip)
                held.clear()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return accelerator, model, optimizer


def _with_loader(optimizer, scheduler, pieces: int):
    return optimizer, loader(pieces), scheduler


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("wrap", WRAPS)
def test_it_accumulates_like_one_big_batch(wrap, pieces):
    _, model, _ = accelerated_run(wrap, pieces)
    assert_same_weights(weights(model), plain_run(wrap, pieces=pieces))


def test_it_clips_the_gradients_the_base_uses():
    _, model, _ = accelerated_run("awp", clip=0.01)
    assert_same_weights(weights(model), plain_run("awp", clip=0.01))


def test_bf16_autocast_follows_the_run_in_float32():
    _, model, _ = accelerated_run("awp", mixed_precision="bf16")
    torch.testing.assert_close(weights(model), plain_run("awp"), rtol=0.1, atol=0.05)


@pytest.mark.parametrize("wrap", WRAPS)
def test_the_closure_form_works_too(wrap):
    accelerator = Accelerator(cpu=True)
    plain = network()
    model, optimizer, batches, scheduler = accelerator.prepare(
        plain, *_with_loader(*build(wrap, plain), 1)
    )
    for x, y in batches:

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            accelerator.backward(loss)
            return loss

        optimizer.step(closure)
        scheduler.step()
    assert_same_weights(weights(model), plain_run(wrap))


@pytest.mark.parametrize("wrap", WRAPS)
def test_save_state_and_load_state_bring_everything_back(wrap, tmp_path):
    accelerator, _, optimizer = accelerated_run(wrap)
    accelerator.save_state(tmp_path)
    expected = optimizer.state_dict()
    again = Accelerator(cpu=True)
    plain = network()
    fresh = again.prepare(plain, *_with_loader(*build(wrap, plain), 1))[1]
    again.load_state(tmp_path)
    torch.testing.assert_close(fresh.state_dict(), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("ascent", "passes"), [("current", [2, 1] * 3), ("update", [1] * 6)])
def test_around_its_optimizer_steps_count_where_they_are_taken(ascent, passes):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, base = accelerator.prepare(plain := network(), torch.optim.SGD(plain.parameters(), 0.1))
    twin = network()
    whole, optimizer = (
        AdversarialWeightPerturbation(each, 0.1, ascent=ascent, interval=2)
        for each in (torch.optim.SGD(twin.parameters(), 0.1), base)
    )
    hooked: list[None] = []
    optimizer.register_step_post_hook(lambda *_: hooked.append(None))
    held, taken = [], []
    for x, y in loader(pieces=2):
        held.append((x, y))
        with accelerator.accumulate(model):
            if accelerator.sync_gradients:
                taken.append(0)
                for _ in optimizer.passes():
                    taken[-1] += 1
                    optimizer.zero_grad()
                    for piece in held:
                        accelerator.backward(nn.functional.mse_loss(model(piece[0]), piece[1]))
                held.clear()
            optimizer.step()
            optimizer.zero_grad()
        assert optimizer.param_groups[0]["perturb_step"] == len(hooked) == len(taken)
    assert taken == passes
    for x, y in DataLoader(dataset(2), batch_size=2 * BATCH):
        for _ in whole.passes():
            whole.zero_grad()
            nn.functional.mse_loss(twin(x), y).backward()
        whole.step()
    assert_same_weights(weights(model), weights(twin))
