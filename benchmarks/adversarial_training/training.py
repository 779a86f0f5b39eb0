"""Adversarial training of a small convolutional network, by the ways that are compared."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import MultiStepLR

from benchmarks.adversarial_training.attack import Attack, attacked, robust
from benchmarks.adversarial_training.images import Labelled, Split
from benchmarks.generalization_grounds.clips import shuffled_batches
from benchmarks.generalization_grounds.optimizers import ClosureSam
from torch_awp import (
    AdversarialWeightPerturbation,
    RandomWeightPerturbation,
    freeze_running_stats,
)

CLASSES = 10


@dataclass(frozen=True)
class Way:
    """What a method changes in plain adversarial training."""

    kind: Literal["plain", "awp", "awp-end", "rwp", "sam"] = "plain"
    magnitude: float = 0.0
    """gamma of AWP and RWP, rho of SAM."""
    weight_decay: float = 5e-4


@dataclass(frozen=True)
class Plain:
    """What no method changes."""

    attack: Attack
    epochs: int
    batch: int = 100
    learning_rate: float = 0.1
    """A tenth of it from half of the steps on, a hundredth from three quarters on."""
    channels: int = 32
    """Of the first convolution; the second has twice as many."""
    checks: int = 10
    """How often robust accuracy on the validation images is measured, the last time at the end."""


@dataclass(frozen=True)
class Check:
    """Robust accuracy on the validation images after an epoch."""

    epoch: int
    validation_robust: float


@dataclass(frozen=True)
class Trained:
    """The network at the end and at its best check, and what the training cost."""

    last: nn.Module
    best: nn.Module
    checks: tuple[Check, ...]
    passes: int
    """Forward and backward passes, those of the attacks included."""
    cpu_seconds: float


def build_network(pixels: int, channels: int) -> nn.Sequential:
    """Logits [B, 10] of images [B, 1, pixels, pixels]: two convolutions, then a linear layer."""
    side = -(-pixels // 4)
    model = nn.Sequential(
        *_block(1, channels),
        *_block(channels, 2 * channels),
        nn.Flatten(),
        nn.Linear(2 * channels * side**2, CLASSES),
    )
    return model.to(memory_format=torch.channels_last)  # a CPU then takes a quarter less time


def build_optimizer(
    model: nn.Sequential, way: Way, learning_rate: float, seed: int
) -> torch.optim.Optimizer:
    """SGD with momentum, perturbed as the way says; `step(closure)` drives them all.

    `"awp-end"` moves the last convolution and the linear layer.
    """
    settings: dict[str, Any] = {
        "lr": learning_rate,
        "momentum": 0.9,
        "weight_decay": way.weight_decay,
    }
    if way.kind == "sam":
        return ClosureSam(model.parameters(), torch.optim.SGD, rho=way.magnitude, **settings)
    base = torch.optim.SGD(model.named_parameters(), **settings)
    if way.kind == "plain":
        return base
    if way.kind == "rwp":
        generator = torch.Generator().manual_seed(seed)
        return RandomWeightPerturbation(base, way.magnitude, generator=generator)
    if way.kind == "awp":
        return AdversarialWeightPerturbation(base, way.magnitude)
    end = [name for name, weight in model.named_parameters() if weight.ndim > 1][-2:]
    return AdversarialWeightPerturbation(
        base, way.magnitude, select=lambda name, weight: name in end
    )


def train(split: Split, way: Way, plain: Plain, seed: int) -> Trained:
    """Train from scratch; the seed draws weights, batches, and where attacks begin."""
    torch.manual_seed(seed)
    model = build_network(split.fitted.images.shape[-1], plain.channels)
    optimizer = build_optimizer(model, way, plain.learning_rate, seed)
    generator = torch.Generator().manual_seed(seed)
    per_epoch = len(split.fitted.labels) // plain.batch
    steps = plain.epochs * per_epoch
    schedule = MultiStepLR(optimizer, [steps // 2, 3 * steps // 4])
    batches = shuffled_batches(len(split.fitted.labels), plain.batch, generator)
    ends = {plain.epochs * (n + 1) // plain.checks for n in range(plain.checks)}
    passes, seconds, checks, best = 0, 0.0, list[Check](), model
    for epoch in range(1, plain.epochs + 1):
        began = time.thread_time()  # what runs beside on a shared machine costs none of it
        model.train()
        for which in islice(batches, per_epoch):
            passes += _step(model, optimizer, split.fitted.some(which), plain.attack, generator)
            schedule.step()
        seconds += time.thread_time() - began
        if epoch in ends:
            value = robust_accuracy(model, split.validation, plain.attack)
            if value > max((check.validation_robust for check in checks), default=-1.0):
                best = copy.deepcopy(model)
            checks.append(Check(epoch, value))
    return Trained(model.eval(), best, tuple(checks), passes, seconds)


def robust_accuracy(model: nn.Module, data: Labelled, attack: Attack) -> float:
    """Share of the images that are right after an attack on the model in evaluation mode.

    The attack begins at the same places whatever the model.
    """
    model.eval()
    generator = torch.Generator().manual_seed(0)
    standing = robust(model, data.images, data.labels, attack, generator)
    return int(standing.sum()) / len(standing)


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Labelled,
    attack: Attack,
    generator: torch.Generator,
) -> int:
    """Attack the batch at the weights as they are, then take a step; the number of passes."""
    with freeze_running_stats(model):
        moved = attacked(model, batch.images, batch.labels, attack, generator)
    closure, count = _closure(model, optimizer, moved, batch.labels)
    optimizer.step(closure)
    return attack.steps + count()


def _closure(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> tuple[Callable[[], float], Callable[[], int]]:
    """A closure whose first pass alone moves running statistics, and how often it was called."""
    calls = 0

    def evaluate() -> float:
        nonlocal calls
        optimizer.zero_grad()
        with freeze_running_stats(model, calls > 0):
            loss = nn.functional.cross_entropy(model(images), labels)
        torch.autograd.backward(loss)
        calls += 1
        return loss.item()

    return evaluate, lambda: calls


def _block(inputs: int, outputs: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
