"""The loss of a quality model near its weights, measured alike wherever it is reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torch_awp import landscape
from vqa.sampling.tiny_fast_vqa import FragmentSampling, PlaneClips, fixed_views
from vqa.training.losses import quality_loss

Loss = Callable[[nn.Module], Tensor]

# All models are looked at through the same fragments.
_VIEW_SEED = 0


@dataclass(frozen=True)
class LandscapeSettings:
    """Where the loss around the trained weights is evaluated."""

    radius: float = 0.02
    """Relative radius of the ball in which sharpness is the rise of the loss."""
    ascent_steps: int = 5
    """Steps by which the worst place in the ball is looked for."""
    reach: float = 0.5
    """The curve goes from minus to plus this multiple of a filter-normalised direction."""
    points: int = 11
    """Places on the curve; an odd number includes the trained weights themselves."""


def loss_on_clips(clips: PlaneClips, sampling: FragmentSampling, rank_weight: float) -> Loss:
    """The loss of a model over one fixed sampling of all clips at once, in evaluation mode.

    Raises:
        ValueError: fewer than two clips, which have no order.
    """
    if len(clips.scores) < 2:
        raise ValueError(f"clips: expected at least 2, got {len(clips.scores)}")
    fragments = fixed_views(clips, sampling, 1, _VIEW_SEED)[0]

    def loss(model: nn.Module) -> Tensor:
        return quality_loss(model.eval()(fragments), clips.scores, rank_weight)

    return loss


def curve_positions(settings: LandscapeSettings) -> Tensor:
    """Multiples of the direction at which the curve is evaluated, float64 [points]."""
    return torch.linspace(-settings.reach, settings.reach, settings.points, dtype=torch.float64)


def random_curve(
    model: nn.Module, loss: Loss, settings: LandscapeSettings, seed: int = 0
) -> Tensor:
    """Losses [points] at `curve_positions` along a direction that the seed decides."""
    generator = torch.Generator().manual_seed(seed)
    direction = landscape.filter_normalized_direction(model, generator)
    return landscape.loss_curve(model, loss, direction, curve_positions(settings))


def random_surface(
    model: nn.Module, loss: Loss, settings: LandscapeSettings, seed: int = 0
) -> tuple[Tensor, float]:
    """Losses over the plane of two random directions, the first being that of `random_curve`.

    Returns:
        Losses [points, points] at `curve_positions` along the first and the second direction, and
        the cosine between the two, which normalising their filters leaves a little off zero.
    """
    generator = torch.Generator().manual_seed(seed)
    first = landscape.filter_normalized_direction(model, generator)
    second = landscape.filter_normalized_direction(model, generator, orthogonal_to=first)
    positions = curve_positions(settings)
    losses = landscape.loss_surface(model, loss, (first, second), positions, positions)
    return losses, landscape.cosine(first, second)


def worst_rise(model: nn.Module, loss: Loss, settings: LandscapeSettings) -> float:
    """How far the loss rises within the relative radius; takes `ascent_steps + 1` losses."""
    return landscape.sharpness(model, loss, settings.radius, steps=settings.ascent_steps)


def average_rise(model: nn.Module, loss: Loss, settings: LandscapeSettings, samples: int) -> float:
    """How far the loss rises there on average over random places; takes `samples + 1` losses."""
    return landscape.sharpness(model, loss, settings.radius, mode="average", samples=samples)
