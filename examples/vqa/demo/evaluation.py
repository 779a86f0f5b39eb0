"""Predicted scores of a set of clips and their agreement with the opinion scores."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqa.training.metrics import Agreement, agreement


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
