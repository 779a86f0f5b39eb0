"""Training of a small network on samples in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from benchmarks.generalization_grounds.clips import shuffled_batches
from benchmarks.generalization_grounds.ground import Meter, metered
from benchmarks.generalization_grounds.methods import Recipe
from benchmarks.generalization_grounds.optimizers import build_optimizer

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class PlainTraining:
    """AdamW at a constant learning rate."""

    epochs: int
    batch: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.01


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
    optimizer = build_optimizer(model, recipe, plain.learning_rate, plain.weight_decay, seed)
    generator = torch.Generator().manual_seed(seed)
    steps = round(recipe.length * plain.epochs * (len(targets) // plain.batch))
    order = islice(shuffled_batches(len(targets), plain.batch, generator), steps)
    return take_steps(model, optimizer, ((inputs[own], targets[own]) for own in order), loss)


def take_steps(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Loss,
    multiplier: Callable[[int], float] = lambda step: 1.0,
) -> Meter:
    """Take a step on every batch of inputs and targets; what that cost, making batches included.

    Args:
        model: predictions of a batch of inputs.
        optimizer: over its parameters; how often it evaluates the loss is its own affair.
        batches: what to take steps on.
        loss: of predictions and targets.
        multiplier: of the learning rate, by the number of the step.
    """
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, multiplier)
    model.train()
    with metered(model) as meter:
        for inputs, targets in batches:
            optimizer.step(_closure(model, optimizer, inputs, targets, loss))
            schedule.step()
    model.eval()
    return meter


def _closure(
    model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor, loss: Loss
) -> Callable[[], float]:
    def evaluate() -> float:
        optimizer.zero_grad()
        value = loss(model(inputs), targets)
        torch.autograd.backward(value)
        return value.item()

    return evaluate
