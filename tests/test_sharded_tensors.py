"""Tensors spread over processes (DTensor) move as the whole tensors would in one process."""

from typing import Any

import pytest
import torch
from ranks import Ranks, mesh_of
from reference import ascent, same_bits
from torch import Tensor, nn
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_tensor,
)
from torch.utils._python_dispatch import TorchDispatchMode

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation

# Dealt to two or four ranks, none of the second and not all of the others come out even.
SHAPES = [(5, 7), (1, 6), (8, 3), (3, 2, 2)]
MESHES: dict[str, tuple[tuple[int, ...], list[Placement]]] = {
    "shards": ((2,), [Shard(0)]),
    "replicas of shards": ((2, 2), [Replicate(), Shard(0)]),
    "shards in two dimensions": ((2, 2), [Shard(0), Shard(1)]),
    "replicas": ((2,), [Replicate()]),
}


class Collectives(TorchDispatchMode):
    """Counts what the processes exchange."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "c10d" in str(func)
        return func(*args, **(kwargs or {}))


def whole_tensors(seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]


def spread(tensors: list[Tensor], mesh: str) -> list[DTensor]:
    shape, placements = MESHES[mesh]
    return [distribute_tensor(tensor, mesh_of(shape), placements) for tensor in tensors]


def spread_parameters(mesh: str, dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    params = [nn.Parameter(tensor) for tensor in spread(whole_tensors(0, dtype), mesh)]
    set_gradients(params, mesh, 1)
    return params


def set_gradients(params: list[nn.Parameter], mesh: str, seed: int) -> None:
    for param, gradient in zip(
        params, spread(whole_tensors(seed, params[0].dtype), mesh), strict=True
    ):
        param.grad = gradient


def full(params: list[nn.Parameter]) -> list[Tensor]:
    return [param.detach().full_tensor().clone() for param in params]


def climb(rank: int, mesh: str, steps: int, constraint: str, step_size: float | None) -> Any:
    params = spread_parameters(mesh)
    optimizer = AdversarialWeightPerturbation(
        torch.optim.SGD(params, lr=0.1),
        0.1,
        steps=steps,
        constraint=constraint,
        step_size=step_size,
    )
    with optimizer.perturb():
        for step in range(1, steps):
            set_gradients(params, mesh, seed=1 + step)
            optimizer.ascend()
        return full(params)


@pytest.fixture(params=MESHES)
def mesh(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ranks(mesh: str, request: pytest.FixtureRequest) -> Ranks:
    size = torch.Size(MESHES[mesh][0]).numel()
    ranks: Ranks = request.getfixturevalue({2: "two_ranks", 4: "four_ranks"}[size])
    return ranks


@pytest.mark.parametrize("constraint", ["layer", "element"])
@pytest.mark.parametrize(("steps", "step_size"), [(1, None), (3, None), (3, 0.09)])
def test_they_climb_like_whole_tensors(ranks, mesh, steps, step_size, constraint):
    gradients = iter([whole_tensors(1 + step) for step in range(steps)])
    expected = ascent(
        whole_tensors(0),
        lambda weights: next(gradients),
        0.1,
        steps=steps,
        step_size=step_size,
        constraint=constraint,
    )
    for moved in ranks.run(climb, mesh, steps, constraint, step_size):
        torch.testing.assert_close(moved, expected, rtol=1e-12, atol=1e-14)


def move_with_epsilon(rank: int, mesh: str) -> list[Tensor]:
    params = spread_parameters(mesh)
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD(params, lr=0.1), 0.1, epsilon=0.5)
    with optimizer.perturb():
        return full(params)


def test_an_epsilon_stands_beside_whole_norms_that_count_replicas_once(ranks, mesh):
    expected = []
    for w, g in zip(whole_tensors(0), whole_tensors(1), strict=True):
        v = 0.1 * (w.norm() + 0.5) * g / (g.norm() + 0.5)
        expected.append(w + v * (0.1 * w.norm() / v.norm()).clamp(max=1))
    for moved in ranks.run(move_with_epsilon, mesh):
        torch.testing.assert_close(moved, expected, rtol=1e-12, atol=1e-14)


def exchanges(rank: int, mesh: str, tensors: int, steps: int, rwp: bool) -> list[int]:
    """How often the processes talk: entering, at each further ascent, leaving."""
    whole = [torch.ones(4, 4), torch.ones(4, 4).double()] * (tensors // 2)
    params = [nn.Parameter(tensor) for tensor in spread(whole, mesh)]
    for param, gradient in zip(params, spread(whole, mesh), strict=True):
        param.grad = gradient
    halves = [
        {"params": params[::3]},
        {"params": [p for i, p in enumerate(params) if i % 3], "perturb_gamma": 0.2},
    ]
    base = torch.optim.SGD(halves, lr=0.1)
    optimizer = (
        RandomWeightPerturbation(base, 0.1)
        if rwp
        else AdversarialWeightPerturbation(base, 0.1, steps=steps)
    )
    counts = []
    with Collectives() as collectives:
        with optimizer.perturb():
            counts.append(collectives.count)
            for _ in range(1, steps):
                optimizer.ascend()
                counts.append(collectives.count - sum(counts))
        counts.append(collectives.count - sum(counts))
    return counts


@pytest.mark.parametrize("tensors", [6, 60])
@pytest.mark.parametrize(("steps", "rwp"), [(1, True), (1, False), (3, False), (7, False)])
def test_a_move_costs_one_collective_for_all_tensors(two_ranks, tensors, steps, rwp):
    """Of several dtypes and gammas too; coming back costs none. (Seven sevenths exceed 1.)"""
    for counts in two_ranks.run(exchanges, "shards", tensors, steps, rwp):
        assert counts == [1] * steps + [0]


def test_replicas_need_no_collective(two_ranks):
    assert two_ranks.run(exchanges, "replicas", 6, 1, False) == [[0, 0]] * 2


def restored(rank: int, mesh: str, dtype: torch.dtype) -> bool:
    params = spread_parameters(mesh, dtype)
    before = [(p.to_local().detach().clone(), p.to_local().data_ptr()) for p in params]
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD(params, lr=0.1), 0.5, steps=2)
    with optimizer.perturb():
        optimizer.ascend()
        moved = any(
            not torch.equal(p.to_local(), w) for p, (w, _) in zip(params, before, strict=True)
        )
    in_place = all(p.to_local().data_ptr() == at for p, (_, at) in zip(params, before, strict=True))
    return (
        moved
        and in_place
        and same_bits(
            [p.to_local().contiguous() for p in params], [w.contiguous() for w, _ in before]
        )
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_shard_comes_back_bit_for_bit_in_its_storage(ranks, mesh, dtype):
    assert all(ranks.run(restored, mesh, dtype))


def draw(rank: int, mesh: str, seed: int | None) -> tuple[list[Tensor], list[Tensor]]:
    params = spread_parameters(mesh)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    optimizer = RandomWeightPerturbation(torch.optim.SGD(params, lr=0.1), 0.1, generator=generator)
    with optimizer.perturb():
        return full(params), [p.to_local().detach().clone() for p in params]


@pytest.mark.parametrize("seed", [None, 3])
def test_equal_seeds_draw_what_one_process_would(ranks, mesh, seed):
    params = [nn.Parameter(tensor) for tensor in whole_tensors(0)]
    torch.manual_seed(0)  # as every rank does
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    whole = RandomWeightPerturbation(torch.optim.SGD(params, lr=0.1), 0.1, generator=generator)
    with whole.perturb():
        for moved, _ in ranks.run(draw, mesh, seed):
            torch.testing.assert_close(moved, [p.detach() for p in params], rtol=1e-12, atol=1e-14)


def shard_of_ones(rank: int, seeds: list[int]) -> tuple[Tensor, float]:
    mesh = mesh_of((2,))
    param = nn.Parameter(distribute_tensor(torch.ones(60, 30), mesh, [Shard(0)]))
    generator = torch.Generator().manual_seed(seeds[rank])
    optimizer = RandomWeightPerturbation(torch.optim.SGD([param], lr=0.1), 0.1, generator=generator)
    with optimizer.perturb():
        v = param.detach() - 1
        return v.to_local().flatten(), v.full_tensor().norm().item()


@pytest.mark.parametrize("seeds", [[5, 5], [5, 6]])
def test_shards_draw_different_noise_whatever_the_seeds(two_ranks, seeds):
    (first, norm), (second, _) = two_ranks.run(shard_of_ones, seeds)
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 5 / 30  # of 900 samples
    assert norm == pytest.approx(0.1 * 1800**0.5, rel=1e-4)


def noise_alive(rank: int) -> int:
    """Bytes of noise that one moving shard keeps."""
    from torch_awp.sharding import part_like

    mesh = mesh_of((2,))
    param = distribute_tensor(torch.ones(60, 30), mesh, [Shard(0)])
    return part_like(torch.randn(60, 30), param).untyped_storage().nbytes()


def test_a_shard_does_not_keep_the_noise_of_the_whole_alive(two_ranks):
    assert two_ranks.run(noise_alive) == [30 * 30 * 4] * 2


def overflow(rank: int) -> list[bool]:
    params = spread_parameters("shards")
    if rank == 1:
        params[0].grad.to_local()[0, 0] = torch.inf
    before = full(params)
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD(params, lr=0.1), 0.1)
    with optimizer.perturb():
        return [not torch.equal(p, w) for p, w in zip(full(params), before, strict=True)]


def test_infinity_in_one_shard_keeps_the_whole_tensor_still(two_ranks):
    assert two_ranks.run(overflow) == [[False, True, True, True]] * 2


def climb_along_partial_gradients(rank: int) -> list[Tensor]:
    params = spread_parameters("shards")
    for param, gradient in zip(params, whole_tensors(1), strict=True):
        # What each rank holds is half of the sum, as tensor parallelism can leave it.
        param.grad = DTensor.from_local(gradient / 2, param.device_mesh, [Partial()])
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD(params, lr=0.1), 0.1)
    with optimizer.perturb():
        return full(params)


def test_gradients_that_are_not_summed_yet_are(two_ranks):
    expected = ascent(whole_tensors(0), lambda weights: whole_tensors(1), 0.1)
    for moved in two_ranks.run(climb_along_partial_gradients):
        torch.testing.assert_close(moved, expected, rtol=1e-12, atol=1e-14)


def first_step_at_zero(rank: int) -> int:
    """Rank 1 has none of the only tensor, so its part of the gradient looks like a probe's."""
    mesh = mesh_of((2,))
    param = nn.Parameter(distribute_tensor(torch.ones(1, 6), mesh, [Shard(0)]))
    param.grad = distribute_tensor(torch.ones(1, 6), mesh, [Shard(0)])
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD([param], lr=0.0), 0.1)
    optimizer.step()
    return int(optimizer.param_groups[0]["perturb_step"])


def test_a_rank_without_a_part_counts_the_steps_of_the_others(two_ranks):
    assert two_ranks.run(first_step_at_zero) == [1, 1]


def with_gradients_on(rank: int, holders: list[list[int]], mesh: str, steps: int) -> list[Tensor]:
    """Each tensor has a gradient on some ranks only, as an expert that saw no token on the others.

    A missing one counts as zeros.
    """
    params, gradients = spread_parameters(mesh), spread(whole_tensors(1), mesh)
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD(params, lr=0.1), 0.1, steps=steps)
    for param, gradient, own in zip(params, gradients, holders, strict=True):
        param.grad = gradient if rank in own else None
    with optimizer.perturb():
        for _ in range(steps - 1):
            optimizer.ascend()
        return full(params)


HOLDERS = {
    "alternating": [[0], [1], [0], [1]],
    "one rank has all": [[0], [0], [0], [0]],
    "one tensor on both": [[0, 1], [1], [], [0]],
}


@pytest.mark.parametrize("holders", HOLDERS)
@pytest.mark.parametrize("steps", [1, 2])
def test_a_tensor_without_a_gradient_on_some_ranks_takes_part_with_zeros(two_ranks, holders, steps):
    expected = []
    for w, g, own in zip(whole_tensors(0), whole_tensors(1), HOLDERS[holders], strict=True):
        shards = zip((0, 1), g.chunk(2), strict=False)
        g = torch.cat([part if rank in own else torch.zeros_like(part) for rank, part in shards])
        expected.append(w + 0.1 * w.norm() * g / g.norm() if g.any() else w)
    for moved in two_ranks.run(with_gradients_on, HOLDERS[holders], "shards", steps):
        torch.testing.assert_close(moved, expected, rtol=1e-12, atol=1e-14)
