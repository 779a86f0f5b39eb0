"""DistributedDataParallel: all ranks keep the same weights, those of one process where promised."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from reference import loss_of, one_step, same_bits, small_net, weights_of
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation

WRAPS = {
    "awp": lambda base: AdversarialWeightPerturbation(base, 0.1),
    "awp-3-steps": lambda base: AdversarialWeightPerturbation(base, 0.1, steps=3, step_size=0.07),
    "awp-update": lambda base: AdversarialWeightPerturbation(base, 0.1, ascent="update"),
    "rwp-shared": lambda base: RandomWeightPerturbation(
        base, 0.1, generator=torch.Generator().manual_seed(5)
    ),
}
RANKS = 2


def whole_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(8, 5, dtype=torch.float64, generator=generator),
        torch.randn(8, 3, dtype=torch.float64, generator=generator),
    )


def share(rank: int) -> tuple[Tensor, Tensor]:
    inputs, targets = whole_batch()
    return inputs.chunk(RANKS)[rank], targets.chunk(RANKS)[rank]


def train(optimizer: Any, model: nn.Module, data: tuple[Tensor, Tensor], form: str) -> list[Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, data)
        loss.backward()
        return loss

    for _ in range(4):
        one_step(optimizer, closure, form)
    return weights_of(model)


def build(wrap: str, **options: Any) -> tuple[Any, nn.Module]:
    model = small_net()
    optimizer = WRAPS[wrap](torch.optim.AdamW(model.parameters(), lr=0.01))
    return optimizer, DistributedDataParallel(model, **options)


def run(rank: int, wrap: str, form: str, options: dict[str, Any]) -> list[Tensor]:
    optimizer, model = build(wrap, **options)
    return train(optimizer, model, share(rank), form)


@pytest.mark.parametrize("options", [{}, {"gradient_as_bucket_view": True}, {"static_graph": True}])
@pytest.mark.parametrize("form", ["closure", "loop", "block"])
@pytest.mark.parametrize("wrap", WRAPS)
def test_ranks_agree_bitwise_and_equal_one_process_on_the_whole_batch(
    two_ranks, wrap, form, options
):
    first, second = two_ranks.run(run, wrap, form, options)
    assert same_bits(first, second)
    torch.manual_seed(0)  # as every rank does
    model = small_net()
    optimizer = WRAPS[wrap](torch.optim.AdamW(model.parameters(), lr=0.01))
    expected = train(optimizer, model, whole_batch(), form)
    torch.testing.assert_close(first, expected, rtol=1e-9, atol=1e-11)


def run_with_ascent_alone(rank: int, synchronised: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Weights after two steps, and where this rank was at the first ascent."""
    model = DistributedDataParallel(small_net())
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD(model.parameters(), lr=0.1), 0.1)
    away: list[list[Tensor]] = []
    for _ in range(2):
        optimizer.zero_grad()
        with nullcontext() if synchronised else model.no_sync():
            loss_of(model, share(rank)).backward()
        with optimizer.perturb():
            away.append(weights_of(model))
            optimizer.zero_grad()
            loss_of(model, share(rank)).backward()
        optimizer.step()
    return weights_of(model), away[0]


def one_process_with_an_ascent_for_each_share() -> list[Tensor]:
    torch.manual_seed(0)
    model = small_net()
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD(model.parameters(), lr=0.1), 0.1)
    for _ in range(2):
        total = [torch.zeros_like(p) for p in model.parameters()]
        for rank in range(RANKS):
            optimizer.zero_grad()
            loss_of(model, share(rank)).backward()
            with optimizer.perturb():
                optimizer.zero_grad()
                loss_of(model, share(rank)).backward()
            for mean, param in zip(total, model.parameters(), strict=True):
                mean += param.grad / RANKS
        for mean, param in zip(total, model.parameters(), strict=True):
            param.grad = mean
        optimizer.step()
    return weights_of(model)


def test_without_synchronisation_every_rank_climbs_its_own_share(two_ranks):
    (first, away), (second, elsewhere) = two_ranks.run(run_with_ascent_alone, False)
    assert not same_bits(away, elsewhere)
    assert same_bits(first, second)
    expected = one_process_with_an_ascent_for_each_share()
    torch.testing.assert_close(first, expected, rtol=1e-9, atol=1e-11)


def test_with_synchronisation_every_rank_climbs_to_the_same_place(two_ranks):
    (first, away), (second, elsewhere) = two_ranks.run(run_with_ascent_alone, True)
    assert same_bits(away, elsewhere)
    assert same_bits(first, second)


def noise(rank: int, seeds: list[int], own_generator: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Where this rank went, and its weights after the step."""
    model = DistributedDataParallel(small_net())
    torch.manual_seed(seeds[rank])
    generator = torch.Generator().manual_seed(seeds[rank]) if own_generator else None
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = RandomWeightPerturbation(base, 0.1, generator=generator)
    with optimizer.perturb():
        away = weights_of(model)
        loss_of(model, share(rank)).backward()
    optimizer.step()
    return away, weights_of(model)


@pytest.mark.parametrize("own_generator", [True, False])
@pytest.mark.parametrize("seeds", [[4, 4], [4, 5]])
def test_noise_is_shared_where_seeds_are_and_weights_agree_anyway(two_ranks, seeds, own_generator):
    (away, first), (elsewhere, second) = two_ranks.run(noise, seeds, own_generator)
    assert same_bits(away, elsewhere) == (seeds[0] == seeds[1])
    assert same_bits(first, second)


def overflow(rank: int) -> tuple[list[Tensor], float, int]:
    model = small_net(torch.float32)
    optimizer = AdversarialWeightPerturbation(
        torch.optim.SGD(model.parameters(), lr=0.1), 0.1, interval=2
    )
    model = DistributedDataParallel(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    inputs, targets = (t.float() for t in share(rank))
    for bad in [True, False]:
        batch = (inputs * torch.inf, targets) if bad and rank == 1 else (inputs, targets)
        optimizer.zero_grad()
        scaler.scale(loss_of(model, batch)).backward()
        with optimizer.perturb():
            optimizer.zero_grad()
            scaler.scale(loss_of(model, batch)).backward()
        scaler.step(optimizer)
        scaler.update()
    return weights_of(model), scaler.get_scale(), optimizer.param_groups[0]["perturb_step"]


def test_an_overflow_on_one_rank_skips_the_step_on_all(two_ranks):
    (first, *counts), (second, *others) = two_ranks.run(overflow)
    assert counts == others == [2.0, 1]
    assert same_bits(first, second)
    assert all(weight.isfinite().all() for weight in first)
