"""FSDP2 (`fully_shard`) and HSDP: a sharded run equals the run in one process.

Here, not beside the tests of the core: on CPUs `fully_shard` needs a torch newer than our oldest.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from ranks import Ranks, mesh_of
from reference import closure_for, loss_of, one_step, same_bits, small_net, weights_of
from tiers import first_fast
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.optim import Optimizer

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation

WRAPS = {
    "awp": lambda base: AdversarialWeightPerturbation(base, 0.1),
    "awp-box": lambda base: AdversarialWeightPerturbation(base, 0.1, constraint="element"),
    "awp-3-steps": lambda base: AdversarialWeightPerturbation(base, 0.1, steps=3, step_size=0.07),
    "awp-3-steps-box": lambda base: AdversarialWeightPerturbation(
        base, 0.1, steps=3, step_size=0.07, constraint="element"
    ),
    "awp-update": lambda base: AdversarialWeightPerturbation(base, 0.1, ascent="update"),
    # After three steps nothing is kept, since the next one does not perturb.
    "awp-update-interval": lambda base: AdversarialWeightPerturbation(
        base, 0.1, ascent="update", interval=2
    ),
    "rwp": lambda base: RandomWeightPerturbation(
        base, 0.1, interval=2, generator=torch.Generator().manual_seed(5)
    ),
}
ADAMW = {"lr": 0.01, "weight_decay": 0.1}


def wide_batch() -> tuple[Tensor, Tensor]:
    """One that two and four ranks can halve and quarter."""
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(8, 5, dtype=torch.float64, generator=generator),
        torch.randn(8, 3, dtype=torch.float64, generator=generator),
    )


def my_share(rank: int, world_size: int) -> tuple[Tensor, Tensor]:
    inputs, targets = wide_batch()
    return inputs.chunk(world_size)[rank], targets.chunk(world_size)[rank]


def shard(model: nn.Module, mesh_shape: tuple[int, ...], **options: Any) -> nn.Module:
    """7 and 3 rows: shards of different sizes; every layer and the root as people do it."""
    names = ("replicate", "shard")[-len(mesh_shape) :]
    mesh = mesh_of(mesh_shape, names)
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    return model


def full_weights(model: nn.Module) -> list[Tensor]:
    return [param.detach().full_tensor() for param in model.parameters()]


def local_weights(model: nn.Module) -> list[Tensor]:
    return [param.detach().to_local().clone() for param in model.parameters()]


def train(optimizer: Optimizer, model: nn.Module, data: Any, form: str, steps: int = 4) -> None:
    closure = closure_for(model, data)
    for _ in range(steps):
        one_step(optimizer, closure, form)


def sharded_run(rank: int, mesh_shape: tuple[int, ...], wrap: str, form: str) -> list[Tensor]:
    model = shard(small_net(), mesh_shape)
    optimizer = WRAPS[wrap](torch.optim.AdamW(model.parameters(), **ADAMW))
    train(optimizer, model, my_share(rank, torch.Size(mesh_shape).numel()), form)
    return full_weights(model)


def assert_equal_to_one_process(ranks: Ranks, mesh_shape: tuple[int, ...], wrap: str, form: str):
    torch.manual_seed(0)  # as every rank does
    model = small_net()
    optimizer = WRAPS[wrap](torch.optim.AdamW(model.parameters(), **ADAMW))
    train(optimizer, model, wide_batch(), form)
    for weights in ranks.run(sharded_run, mesh_shape, wrap, form):
        torch.testing.assert_close(weights, weights_of(model), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("form", ["closure", "loop", "block"])
@pytest.mark.parametrize("wrap", WRAPS)
def test_a_sharded_run_equals_the_one_in_one_process(two_ranks, wrap, form):
    assert_equal_to_one_process(two_ranks, (2,), wrap, form)


@pytest.mark.parametrize("wrap", first_fast(WRAPS))
def test_replicas_of_shards_equal_the_run_in_one_process(four_ranks, wrap):
    assert_equal_to_one_process(four_ranks, (2, 2), wrap, "closure")


def even_net() -> nn.Sequential:
    """Tensor parallelism wants layers that it can halve; FSDP2 no view as the output."""
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3), nn.Tanh()).double()


def tensor_parallel_run(rank: int, wrap: str) -> list[Tensor]:
    mesh = mesh_of((2, 2), ("shard", "tensor"))
    model = even_net()
    parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(model, mesh=mesh["shard"])
    optimizer = WRAPS[wrap](torch.optim.AdamW(model.parameters(), **ADAMW))
    train(optimizer, model, my_share(mesh.get_local_rank("shard"), 2), "loop")
    return full_weights(model)


@pytest.mark.parametrize("wrap", first_fast(WRAPS))
def test_tensor_parallelism_under_it_equals_the_run_in_one_process(four_ranks, wrap):
    torch.manual_seed(0)  # as every rank does
    model = even_net()
    optimizer = WRAPS[wrap](torch.optim.AdamW(model.parameters(), **ADAMW))
    train(optimizer, model, wide_batch(), "loop")
    for weights in four_ranks.run(tensor_parallel_run, wrap):
        torch.testing.assert_close(weights, weights_of(model), rtol=1e-9, atol=1e-11)


def restored(rank: int, **options: Any) -> bool:
    model = shard(small_net(torch.float32), (2,), **options)
    data = tuple(t.float() for t in my_share(rank, 2))
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD(model.parameters(), lr=0.1), 0.1)
    loss_of(model, data).backward()
    before = local_weights(model)
    with optimizer.perturb():
        moved = not same_bits(local_weights(model), before)
        optimizer.zero_grad()
        loss_of(model, data).backward()
    return moved and same_bits(local_weights(model), before)


def restored_in_mixed_precision(rank: int) -> bool:
    return restored(rank, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))


@pytest.mark.parametrize("check", [restored, restored_in_mixed_precision])
def test_every_shard_comes_back_bit_for_bit(two_ranks, check):
    assert two_ranks.run(check) == [True, True]


def losses_around_a_forward_alone(rank: int, tidy: str) -> list[float]:
    """At home, away and at home again, of a model whose root owns all parameters."""
    options = {tidy: True} if tidy == "reshard_after_forward" else {}
    model, data = fully_shard(small_net(), **options), my_share(0, 2)
    optimizer = RandomWeightPerturbation(torch.optim.SGD(model.parameters(), lr=0.1), 0.5)
    losses = []

    @torch.no_grad()
    def measure() -> None:
        losses.append(loss_of(model, data).item())
        if tidy == "reshard":
            model.reshard()

    measure()
    with optimizer.perturb():
        measure()
    measure()
    return losses


@pytest.mark.parametrize("tidy", ["reshard", "reshard_after_forward"])
def test_a_resharded_forward_alone_sees_the_weights_that_are_there(two_ranks, tidy):
    """A forward without a backward leaves the root's weights gathered, whatever changes after."""
    for home, away, home_again in two_ranks.run(losses_around_a_forward_alone, tidy):
        assert home == home_again != away


def resume(rank: int, wrap: str, options: StateDictOptions) -> bool:
    model, data = shard(small_net(), (2,)), my_share(rank, 2)
    optimizer = WRAPS[wrap](torch.optim.AdamW(model.parameters(), **ADAMW))
    train(optimizer, model, data, "closure", steps=3)
    optimizer.zero_grad()
    saved_model = copy.deepcopy(get_model_state_dict(model, options=options))
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    torch.manual_seed(9)
    twin = shard(small_net(), (2,))
    resumed = WRAPS[wrap](torch.optim.AdamW(twin.parameters(), **ADAMW))
    set_model_state_dict(twin, saved_model, options=options)
    set_optimizer_state_dict(twin, resumed, optim_state_dict=saved, options=options)
    for each, module in [(optimizer, model), (resumed, twin)]:
        train(each, module, data, "closure", steps=3)
    return same_bits(local_weights(model), local_weights(twin))


RESUMED = ["awp", "awp-update", "awp-update-interval", "rwp"]
OPTIONS = {
    "sharded": StateDictOptions(),
    "flat": StateDictOptions(flatten_optimizer_state_dict=True),
    "full": StateDictOptions(full_state_dict=True),
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("wrap", RESUMED)
def test_distributed_state_dicts_resume_bitwise(two_ranks, wrap, options):
    assert two_ranks.run(resume, wrap, OPTIONS[options]) == [True, True]


def save(rank: int, folder: Path, wrap: str) -> list[Tensor]:
    model, data = shard(small_net(), (2,)), my_share(rank, 2)
    optimizer = WRAPS[wrap](torch.optim.AdamW(model.parameters(), **ADAMW))
    train(optimizer, model, data, "closure", steps=3)
    optimizer.zero_grad()
    dcp.save(_states(model, optimizer), checkpoint_id=folder)
    train(optimizer, model, data, "closure", steps=3)
    return full_weights(model)


def load(rank: int, folder: Path, wrap: str) -> list[Tensor]:
    torch.manual_seed(9)
    model, data = shard(small_net(), (2,)), my_share(rank, 2)
    optimizer = WRAPS[wrap](torch.optim.AdamW(model.parameters(), **ADAMW))
    states = _states(model, optimizer)
    dcp.load(states, checkpoint_id=folder)
    set_model_state_dict(model, states["model"])
    set_optimizer_state_dict(model, optimizer, optim_state_dict=states["optimizer"])
    train(optimizer, model, data, "closure", steps=3)
    return full_weights(model)


def _states(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    return {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
    }


@pytest.mark.parametrize("wrap", first_fast(RESUMED))
def test_a_distributed_checkpoint_on_disk_resumes_bitwise(two_ranks, wrap, tmp_path):
    expected = two_ranks.run(save, tmp_path, wrap)
    for weights, reference in zip(two_ranks.run(load, tmp_path, wrap), expected, strict=True):
        assert same_bits(weights, reference)
