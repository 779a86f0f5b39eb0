"""The demo's training loop: clips in memory, any model, optimizer and weight perturbation."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vqa.sampling.tiny_fast_vqa import (
    FragmentSampling,
    PlaneClips,
    sample_fragments,
    shuffled_batches,
)
from vqa.training.losses import quality_loss
from vqa.training.optim import warm_up_cosine


@dataclass(frozen=True)
class TrainingSettings:
    """The base optimizer (AdamW), its schedule and the loss."""

    steps: int = 360
    batch: int = 16
    learning_rate: float = 4e-3
    weight_decay: float = 0.05
    warm_up: float = 0.1
    """Part of the steps over which the learning rate rises."""
    rank_weight: float = 0.3


def adamw(model: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """The base optimizer, before any perturbation is wrapped around it."""
    return torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    clips: PlaneClips,
    sampling: FragmentSampling,
    settings: TrainingSettings,
    generator: torch.Generator,
    on_step: Callable[[], None] = lambda: None,
) -> list[float]:
    """Train a model in place.

    Args:
        model: scores [B] from fragments [B, C, T, H, W].
        optimizer: over the model's parameters; how often it evaluates the loss is its own affair.
        clips: the training clips.
        sampling: how fragments are cut.
        settings: number of steps, batch size, schedule, loss.
        generator: draws batches and fragments, so that two methods see the same ones.
        on_step: called after every step.

    Returns:
        Wall time of every optimizer step in seconds, without cutting the fragments.
    """
    rise = max(1, round(settings.warm_up * settings.steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warm_up_cosine(step, settings.steps, rise)
    )
    batches = shuffled_batches(len(clips.scores), settings.batch, generator)
    model.train()
    seconds: list[float] = []
    for _, which in zip(range(settings.steps), batches, strict=False):
        fragments = sample_fragments(clips, which, sampling, generator)
        began = time.perf_counter()
        optimizer.step(_closure(model, optimizer, fragments, clips.scores[which], settings))
        seconds.append(time.perf_counter() - began)
        schedule.step()
        on_step()
    return seconds


def _closure(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    fragments: Tensor,
    scores: Tensor,
    settings: TrainingSettings,
) -> Callable[[], float]:
    def evaluate() -> float:
        optimizer.zero_grad()
        loss = quality_loss(model(fragments), scores, settings.rank_weight)
        torch.autograd.backward(loss)
        return loss.item()

    return evaluate
