"""The loss of a quality model near its weights, measured alike wherever it is reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torch_awp import landscape
from vqa.clips import FragmentSampling, PlaneClips, fixed_views
from vqa.losses import quality_loss

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


def loss_on_clips(clips: PlaneClips, sampling: FragmentSampling, rank_weight: float) -> Loss:
    """The loss of a model over one fixed sampling of all clips at once, in evaluation mode."""
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


def worst_rise(model: nn.Module, loss: Loss, settings: LandscapeSettings) -> float:
    """How far the loss rises within the relative radius; takes `ascent_steps + 1` losses."""
    return landscape.sharpness(model, loss, settings.radius, steps=settings.ascent_steps)
