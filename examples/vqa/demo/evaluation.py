"""Predicted scores of a set of clips, their agreement with the opinion scores, and their loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqa.metrics import Agreement, agreement
from vqa.sampling.tiny_fast_vqa import FragmentSampling, PlaneClips, fixed_views
from vqa.training.landscape import Loss
from vqa.training.losses import quality_loss

# All models are looked at through the same fragments.
_VIEW_SEED = 0


@torch.no_grad()
def predict(model: nn.Module, views: Tensor) -> Tensor:
    """Scores [N], the mean over fixed views [V, N, C, T, H, W] of every clip; evaluation mode."""
    training = model.training
    model.eval()
    scores = torch.stack([model(view) for view in views]).mean(dim=0)
    model.train(training)
    return scores


def evaluate(model: nn.Module, views: Tensor, scores: Tensor) -> Agreement:
    """Agreement of a model with opinion scores [N] on fixed views [V, N, C, T, H, W]."""
    return agreement(predict(model, views), scores)


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
