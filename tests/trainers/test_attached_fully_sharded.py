"""Attached under FSDP2: modes of one pass equal one process, a climb is refused by name.

Beside the trainers, since older torch needs an accelerator for it.
"""

import pytest
import torch
from reference import same_bits, weights_of
from test_attach_surroundings import RANKS, STEPS, WRAPS, Net, batches, sgd
from tiers import first_fast
from torch import Tensor
from torch.distributed.fsdp import fully_shard


def sharded_run(rank: int, wrap: str, order: str, evaluates: str) -> list[Tensor]:
    torch.manual_seed(0)
    model = Net()
    if order.startswith("attach"):  # as Accelerate, which puts other tensors into the groups
        optimizer = WRAPS[wrap](sgd(model))
        optimizer.attach(model)
    parts = () if order.endswith("whole") else (model.net[0], model.net[2])
    for part in (*parts, model):
        fully_shard(part)
    if order.startswith("attach"):
        optimizer.param_groups[0]["params"] = list(model.parameters())
    else:
        optimizer = WRAPS[wrap](sgd(model))
        optimizer.attach(model)
    for pieces in batches(rank):
        optimizer.zero_grad()
        for x, y in pieces:
            if evaluates == "before":
                with torch.no_grad():
                    model(x, y)
            loss = model(x, y)
            if evaluates == "between":
                with torch.no_grad():
                    model(x, y)
            loss.backward()
        optimizer.step()
    return [param.full_tensor().detach() for param in model.parameters()]


@pytest.mark.parametrize("evaluates", first_fast(["between", "before", "never"]))
@pytest.mark.parametrize("order", ["attach, shard", "shard, attach", "attach, shard whole"])
@pytest.mark.parametrize("wrap", first_fast(["rwp", "update"]))
def test_modes_of_one_pass_equal_one_process_under_fsdp2(two_ranks, wrap, order, evaluates):
    runs = two_ranks.run(sharded_run, wrap, order, evaluates)
    assert same_bits(runs[0], runs[1])
    # Both ranks make the same moves, of the whole tensors: as replicas that average gradients.
    expected = by_hand_sharded(wrap)
    torch.testing.assert_close(runs[0], expected, rtol=1e-4, atol=1e-5)


def by_hand_sharded(wrap: str) -> list[Tensor]:
    torch.manual_seed(0)
    model = Net()
    optimizer = WRAPS[wrap](sgd(model))
    for step in range(STEPS):
        for _ in optimizer.passes():
            optimizer.zero_grad()
            for rank in range(RANKS):
                ((x, y),) = batches(rank)[step]
                (model(x, y) / RANKS).backward()
        optimizer.step()
    return weights_of(model)


def climbing_run(rank: int) -> str:
    model = fully_shard(Net())
    optimizer = WRAPS["awp"](sgd(model))
    optimizer.attach(model)
    try:
        model(*batches(rank)[0][0])
    except RuntimeError as error:
        return str(error)
    return ""


def test_a_climb_under_fsdp2_is_refused_by_name(two_ranks):
    for answer in two_ranks.run(climbing_run):
        assert "FSDP2" in answer
