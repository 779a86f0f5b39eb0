"""Accelerate shards by FSDP2 and gives the optimizer other tensors after it was attached."""

import os
from unittest import mock

import pytest
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from plain_loop import WRAPS, Regressor
from reference import same_bits, weights_of
from torch import Tensor

pytestmark = pytest.mark.slow  # importing it in two processes takes long

RANKS = 2
STEPS = 3
PIECES = 2


def batches(rank: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(rank)
    return [
        (torch.randn(4, 5, generator=generator), torch.randn(4, 3, generator=generator))
        for _ in range(STEPS * PIECES)
    ]


def accelerated(rank: int) -> Accelerator:
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": RANKS}
    variables = {**{key: str(value) for key, value in ranks.items()}, "OMP_NUM_THREADS": "1"}
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="NO_WRAP", cpu_ram_efficient_loading=False
    )
    AcceleratorState._reset_state(reset_partial_state=True)
    with mock.patch.dict(os.environ, variables):
        accelerator = Accelerator(cpu=True, fsdp_plugin=plugin, gradient_accumulation_steps=PIECES)
    # Which it does by itself on an accelerator alone.
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
    return accelerator


def run(rank: int, wrap: str) -> list[Tensor]:
    accelerator = accelerated(rank)
    model = Regressor()
    optimizer = WRAPS[wrap](torch.optim.AdamW(model.parameters(), lr=0.05))
    optimizer.attach(model)
    model, optimizer = accelerator.prepare(model, optimizer)
    for x, y in batches(rank):
        with accelerator.accumulate(model):
            accelerator.backward(model(x, y)["loss"])
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.05)
            optimizer.step()
            optimizer.zero_grad()
    return [param.full_tensor().detach() for param in model.parameters()]


def by_hand(wrap: str) -> list[Tensor]:
    """All ranks' shares of a micro-batch, at the same weights."""
    model = Regressor()
    optimizer = WRAPS[wrap](torch.optim.AdamW(model.parameters(), lr=0.05))
    data = list(zip(*(batches(rank) for rank in range(RANKS)), strict=True))
    for step in range(STEPS):
        total = [torch.zeros_like(param) for param in model.parameters()]
        for shares in data[PIECES * step : PIECES * (step + 1)]:
            with optimizer.perturb():
                model.zero_grad()
                for x, y in shares:
                    (model(x, y)["loss"] / (RANKS * PIECES)).backward()
            for tensor, param in zip(total, model.parameters(), strict=True):
                tensor += param.grad
        for tensor, param in zip(total, model.parameters(), strict=True):
            param.grad = tensor
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
    return weights_of(model)


@pytest.mark.parametrize("wrap", ["rwp", "awp-update"])
def test_modes_of_one_pass_equal_one_process(two_ranks, wrap):
    runs = two_ranks.run(run, wrap)
    assert same_bits(runs[0], runs[1])
    torch.testing.assert_close(runs[0], by_hand(wrap), rtol=1e-4, atol=1e-5)


def refused(rank: int) -> str:
    try:
        run(rank, "awp")
    except RuntimeError as error:
        return str(error)
    return ""


def test_a_climb_is_refused_by_name(two_ranks):
    for answer in two_ranks.run(refused):
        assert "FSDP2" in answer
