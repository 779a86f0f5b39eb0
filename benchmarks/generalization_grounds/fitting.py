"""Training of a small network on samples in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.generalization_grounds.clips import shuffled_batches
from benchmarks.generalization_grounds.ground import Meter, metered
from benchmarks.generalization_grounds.methods import Recipe
from benchmarks.generalization_grounds.optimizers import Base, build_optimizer
from torch_awp import AdversarialWeightPerturbation
from vqa.training.optim import warm_up_cosine

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class PlainTraining:
    """What no method changes unless its recipe says so."""

    epochs: int
    batch: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    base: Base = "adamw"
    schedule: Literal["constant", "cosine"] = "constant"


def build_mlp(inputs: int, width: int, outputs: int, dropout: float) -> nn.Module:
    """Outputs [B, O] of inputs [B, F]: two hidden layers, dropout after each."""
    return nn.Sequential(
        nn.Linear(inputs, width),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(width, outputs),
    )


def fit(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    loss: Loss,
    recipe: Recipe,
    plain: PlainTraining,
    seed: int,
) -> Meter:
    """Train a model in place by a recipe; what it cost.

    Args:
        model: predictions of a batch of inputs.
        inputs: samples [N, ...].
        targets: what `loss` compares predictions with, [N].
        loss: of predictions and targets.
        recipe: changes to plain training.
        plain: plain training.
        seed: draws batches and the random perturbation.
    """
    steps = round(recipe.length * plain.epochs * (len(targets) // plain.batch))
    optimizer = build_optimizer(
        model, recipe, plain.learning_rate, plain.weight_decay, seed, steps, plain.base
    )
    generator = torch.Generator().manual_seed(seed)
    order = islice(shuffled_batches(len(targets), plain.batch, generator), steps)
    return take_steps(
        model,
        optimizer,
        ((inputs[own], targets[own]) for own in order),
        loss,
        plain.batch,
        lambda step: _multiplier(plain, step, steps),
        recipe.climb_share,
    )


def take_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Loss,
    batch: int,
    multiplier: Callable[[int], float] = lambda step: 1.0,
    climb_share: float = 1.0,
) -> Meter:
    """Take a step on every batch of inputs and targets; what that cost, making batches included.

    Args:
        model: predictions of a batch of inputs.
        optimizer: over its parameters; how often it evaluates the loss is its own affair.
        batches: what to take steps on.
        loss: of predictions and targets.
        batch: samples of a whole pass.
        multiplier: of the learning rate, by the number of the step.
        climb_share: of a batch whose gradient AWP climbs along.
    """
    schedule = LambdaLR(optimizer, multiplier)
    model.train()
    with metered(model, batch) as meter:
        for inputs, targets in batches:
            if climb_share < 1:
                _step_with_partial_climb(model, optimizer, inputs, targets, loss, climb_share)
            else:
                optimizer.step(_closure(model, optimizer, inputs, targets, loss))
            schedule.step()
    model.eval()
    return meter


def _multiplier(plain: PlainTraining, step: int, steps: int) -> float:
    return 1.0 if plain.schedule == "constant" else warm_up_cosine(step, steps, warm_up=0)


def _step_with_partial_climb(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    targets: Tensor,
    loss: Loss,
    share: float,
) -> None:
    """A step of AWP whose gradient to climb is that of the first samples of the batch."""
    if not isinstance(optimizer, AdversarialWeightPerturbation):
        raise ValueError(f"climb_share: expected 1 without AWP, got {share}")
    few = round(share * len(targets))
    for p in optimizer.passes():
        which = slice(few if p.climbs else None)
        optimizer.zero_grad()
        torch.autograd.backward(loss(model(inputs[which]), targets[which]))
    optimizer.step()


def _closure(
    model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor, loss: Loss
) -> Callable[[], float]:
    def evaluate() -> float:
        optimizer.zero_grad()
        value = loss(model(inputs), targets)
        torch.autograd.backward(value)
        return value.item()

    return evaluate
