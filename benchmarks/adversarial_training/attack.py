"""Attacks on images by projected gradient descent, to train with and to measure with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Attack:
    """Projected gradient descent in the maximum norm (Madry et al. 2018)."""

    radius: float
    """No pixel, 0 to 1, changes by more."""
    steps: int
    """Each changes every pixel by a quarter of the radius."""
    restarts: int = 1
    """Random places to begin at; where there are several, an image counts as robust if it is
    right after each. Every second climbs along the margin loss instead of cross-entropy."""


def margin_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """How far the best wrong class is above the right one (Carlini and Wagner 2017), mean.

    Args:
        logits: [B, C].
        labels: int64 [B].

    >>> margin_loss(torch.tensor([[1.0, 3.0, 0.0]]), torch.tensor([0]))
    tensor(2.)
    """
    right = nn.functional.one_hot(labels, logits.shape[1]).bool()
    best_wrong = logits.masked_fill(right, -torch.inf).amax(dim=1)
    return (best_wrong - logits[right]).mean()


def attacked(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: Attack,
    generator: torch.Generator,
    loss: Loss = nn.functional.cross_entropy,
) -> Tensor:
    """Images near these on which the loss is high; the model's gradients stay as they are.

    Args:
        model: logits of images, in the mode in which it is to be attacked.
        images: float32 [B, ...], 0 to 1.
        labels: int64 [B].
        attack: its strength; one restart of it.
        generator: draws the place to begin at.
        loss: what to climb.
    """
    low = (images - attack.radius).clamp(min=0)
    high = (images + attack.radius).clamp(max=1)
    moved = torch.lerp(low, high, torch.rand(images.shape, generator=generator))
    for _ in range(attack.steps):
        moved.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(model(moved), labels), moved)
        moved = moved.detach() + attack.radius / 4 * gradient.sign()
        moved = torch.minimum(torch.maximum(moved, low), high)
    return moved


def right(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Which images the model puts into the right class, bool [B]."""
    with torch.no_grad():
        found: Tensor = model(images).argmax(dim=1) == labels
    return found


def robust(
    model: nn.Module, images: Tensor, labels: Tensor, attack: Attack, generator: torch.Generator
) -> Tensor:
    """Which images the model still puts into the right class after every restart, bool [B].

    Args:
        model: in evaluation mode.
        images: float32 [B, ...], 0 to 1.
        labels: int64 [B].
        attack: its strength.
        generator: draws the places to begin at.
    """
    standing = right(model, images, labels)
    for restart in range(attack.restarts):
        rest = standing.nonzero().flatten()
        loss = margin_loss if restart % 2 else nn.functional.cross_entropy
        moved = attacked(model, images[rest], labels[rest], attack, generator, loss)
        standing[rest] = right(model, moved, labels[rest])
    return standing
