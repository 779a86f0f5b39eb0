"""AWP on the end of a model: recipes take the steps of the loop over the whole, to the bit."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from reference import same_bits
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from torch_awp import (
    AdversarialWeightPerturbation,
    RandomWeightPerturbation,
    freeze_running_stats,
)

Step = Callable[[nn.Sequential, Any, Tensor, Tensor], None]
WRAPS = {
    "awp": lambda base, select: AdversarialWeightPerturbation(base, 0.1, select=select),
    "awp-2-steps": lambda base, select: AdversarialWeightPerturbation(
        base, 0.1, steps=2, select=select
    ),
    "awp-every-second": lambda base, select: AdversarialWeightPerturbation(
        base, 0.1, interval=2, select=select
    ),
    "awp-update": lambda base, select: AdversarialWeightPerturbation(
        base, 0.1, ascent="update", select=select
    ),
    "awp-gamma-0": lambda base, select: AdversarialWeightPerturbation(base, 0.0, select=select),
    "rwp": lambda base, select: RandomWeightPerturbation(
        base, 0.1, select=select, generator=torch.Generator().manual_seed(3)
    ),
}
RANKS = 2


def model_in_two() -> nn.Sequential:
    """Two parts with BatchNorm on both sides of the cut, and dropout behind it."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 8))
    end = nn.Sequential(
        nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 5), nn.Dropout(0.3), nn.Linear(5, 2)
    )
    return nn.Sequential(body, end)


def at_the_end(name: str, param: Tensor) -> bool:
    return name.startswith("1.") and param.ndim > 1


def loss_of(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.mse_loss(output, target)


def whole(model: nn.Sequential, optimizer: Any, x: Tensor, y: Tensor) -> None:
    for p in optimizer.passes():
        optimizer.zero_grad()
        with freeze_running_stats(model, p.index > 0):
            loss_of(model(x), y).backward()
    optimizer.step()


def split(model: Iterable[nn.Module], optimizer: Any, x: Tensor, y: Tensor) -> None:
    body, end = model
    features = body(x)
    for p in optimizer.passes():
        optimizer.zero_grad()
        with freeze_running_stats(end, p.index > 0):
            loss = loss_of(end(features), y)
        loss.backward(inputs=p.inputs)
    optimizer.step()


def unsplit(model: nn.Sequential, optimizer: Any, x: Tensor, y: Tensor) -> None:
    for p in optimizer.passes():
        optimizer.zero_grad()
        with freeze_running_stats(model, p.index > 0):
            loss = loss_of(model(x), y)
        loss.backward(inputs=p.inputs)
    optimizer.step()


def trained(step: Step, wrap: str = "awp") -> list[Tensor]:
    """Weights and statistics after four steps."""
    model = model_in_two()
    optimizer = WRAPS[wrap](torch.optim.AdamW(model.named_parameters(), lr=0.05), at_the_end)
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(2)  # dropout
    for _ in range(4):
        x, y = (torch.randn(12, size, generator=generator) for size in (6, 2))
        step(model, optimizer, x, y)
    return [*model.state_dict().values()]


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("step", [split, unsplit])
def test_every_mode_gives_what_the_whole_model_gives_with_the_same_select(wrap, step):
    assert same_bits(trained(step, wrap), trained(whole, wrap))


def attached() -> Step:
    """A plain loop; the end, which knows no targets, is told its loss."""
    targets: list[Tensor] = []

    def step(model: nn.Sequential, optimizer: Any, x: Tensor, y: Tensor) -> None:
        if not targets:
            optimizer.attach(model[1], loss=lambda output, *_: loss_of(output, targets[-1]))
        targets.append(y)
        optimizer.zero_grad()
        loss_of(model(x), y).backward()
        optimizer.step()

    return step


@pytest.mark.parametrize("wrap", WRAPS)
def test_attached_to_the_end_a_plain_loop_takes_the_steps_of_the_split_loop(wrap):
    assert same_bits(trained(attached(), wrap), trained(split, wrap))


class EndsInItsLoss(nn.Sequential):
    def forward(self, features: Tensor, y: Tensor) -> Tensor:
        return loss_of(super().forward(features), y)


def test_an_end_that_ends_in_its_loss_needs_no_other():
    ends: list[EndsInItsLoss] = []

    def step(model: nn.Sequential, optimizer: Any, x: Tensor, y: Tensor) -> None:
        if not ends:
            ends.append(EndsInItsLoss(*model[1]))
            optimizer.attach(ends[0])
        optimizer.zero_grad()
        ends[0](model[0](x), y).backward()
        optimizer.step()

    assert same_bits(trained(step), trained(split))


def test_attached_the_end_alone_runs_twice():
    model, seen = model_in_two(), []
    for name, part in zip(("body", "end"), model, strict=True):
        part.register_forward_hook(lambda *_, name=name: seen.append(name))
    optimizer = WRAPS["awp"](torch.optim.SGD(model.named_parameters(), lr=0.1), at_the_end)

    attached()(model, optimizer, torch.randn(4, 6), torch.randn(4, 2))

    assert seen == ["body", "end", "end"]


def test_the_end_moves():
    assert not same_bits(trained(split, "awp"), trained(split, "awp-gamma-0"))


def test_the_part_before_the_cut_is_computed_once_and_differentiated_once():
    model, seen = model_in_two(), []
    body, end = model
    body.register_forward_hook(lambda *_: seen.append("body"))
    end.register_forward_hook(lambda *_: seen.append("end"))
    body[0].weight.register_hook(lambda _: seen.append("gradient of body"))
    optimizer = WRAPS["awp"](torch.optim.SGD(model.named_parameters(), lr=0.1), at_the_end)

    split(model, optimizer, torch.randn(4, 6), torch.randn(4, 2))

    assert seen == ["body", "end", "end", "gradient of body"]


def test_unsplit_the_climb_ends_where_nothing_moves_any_more():
    model, seen = model_in_two(), []
    model[0][0].weight.register_hook(lambda _: seen.append("gradient of body"))
    optimizer = WRAPS["awp"](torch.optim.SGD(model.named_parameters(), lr=0.1), at_the_end)

    unsplit(model, optimizer, torch.randn(4, 6), torch.randn(4, 2))

    assert seen == ["gradient of body"]


def scaled(in_two: bool) -> Step:
    """The same with a GradScaler and gradients that are clipped; one step overflows."""
    scaler, count = torch.amp.GradScaler("cpu", init_scale=256.0), iter(range(4))

    def step(model: nn.Sequential, optimizer: Any, x: Tensor, y: Tensor) -> None:
        body, end = model if in_two else (None, model)
        y = y * torch.inf if next(count) == 1 else y
        features = body(x) if body else x
        for p in optimizer.passes():
            optimizer.zero_grad()
            with freeze_running_stats(end, p.index > 0):
                loss = loss_of(end(features), y)
            scaler.scale(loss).backward(inputs=p.inputs if in_two else None)
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()

    return step


def test_with_a_grad_scaler_too():
    assert same_bits(trained(scaled(in_two=True)), trained(scaled(in_two=False)))


def test_body_and_end_are_compiled_apart():
    compiled: dict[nn.Module, nn.Module] = {}

    def step(model: nn.Sequential, optimizer: Any, x: Tensor, y: Tensor) -> None:
        for part in model:
            if part not in compiled:
                compiled[part] = torch.compile(part, backend="eager")  # the same to the bit
        split([compiled[part] for part in model], optimizer, x, y)

    assert same_bits(trained(step), trained(whole))
    torch.compiler.reset()


def run_in_parallel(rank: int, in_two: bool) -> list[Tensor]:
    model = model_in_two()
    optimizer = WRAPS["awp"](torch.optim.AdamW(model.named_parameters(), lr=0.05), at_the_end)
    parts: Sequence[nn.Module] = model if in_two else [model]
    *body, end = (DistributedDataParallel(part) for part in parts)
    generator = torch.Generator().manual_seed(1 + rank)
    torch.manual_seed(2)
    for _ in range(4):
        x, y = (torch.randn(12, size, generator=generator) for size in (6, 2))
        features = body[0](x) if body else x
        for p in optimizer.passes():
            optimizer.zero_grad()
            with end.no_sync() if p.climbs else nullcontext():
                with freeze_running_stats(end, p.index > 0):
                    loss = loss_of(end(features), y)
                loss.backward(inputs=p.inputs)
        optimizer.step()
    return [param.detach().clone() for param in model.parameters()]


def test_under_ddp_ranks_agree_and_take_the_steps_of_the_whole(two_ranks):
    first, second = two_ranks.run(run_in_parallel, True)
    assert same_bits(first, second)
    assert same_bits(first, two_ranks.run(run_in_parallel, False)[0])
