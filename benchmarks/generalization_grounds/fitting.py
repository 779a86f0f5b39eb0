"""Training of a small network on samples in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.generalization_grounds.ground import Meter, metered
from benchmarks.generalization_grounds.methods import Recipe
from benchmarks.generalization_grounds.optimizers import build_optimizer
from vqa.sampling.tiny_fast_vqa import shuffled_batches

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
    batches = shuffled_batches(len(targets), plain.batch, generator)
    steps = round(recipe.length * plain.epochs * (len(targets) // plain.batch))
    model.train()
    with metered(model) as meter:
        for _, which in zip(range(steps), batches, strict=False):
            optimizer.step(_closure(model, optimizer, inputs[which], targets[which], loss))
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
