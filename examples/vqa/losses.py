"""Losses that compare predicted with opinion scores of a batch (FAST-VQA, Wu et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor


def plcc_loss(predicted: Tensor, target: Tensor) -> Tensor:
    r"""Linearity: zero when the prediction is an increasing linear function of the target.

    With both z-scored by their population standard deviation and `rho = mean(p * q)`,
    `loss = (MSE(p, q) / 4 + MSE(rho * p, q) / 4) / 2`.

    Args:
        predicted: scores, floating [B] or [B, 1].
        target: opinion scores of the same shape.

    Returns:
        A scalar of the dtype of `predicted`; 0 for B = 1.
    """
    p, q = _standardise(predicted), _standardise(target)
    rho = (p * q).mean()
    return ((p - q).square().mean() + (rho * p - q).square().mean()) / 8


def rank_loss(predicted: Tensor, target: Tensor) -> Tensor:
    r"""Monotonicity: zero when the prediction orders every pair as the target does.

    `m_ij = max(0, (p_i - p_j) * sgn(q_j - q_i))`, summed over all ordered pairs and divided by
    `B (B - 1) (1 + max m)`.

    Args:
        predicted: scores, floating [B] or [B, 1].
        target: opinion scores of the same shape.

    Returns:
        A scalar of the dtype of `predicted`; NaN for B = 1, which has no pair.
    """
    p, q = predicted.flatten(), target.flatten()
    disorder = torch.relu((p[:, None] - p) * torch.sign(q - q[:, None]))
    pairs = len(p) * (len(p) - 1)
    return disorder.sum() / pairs / (1 + disorder.max())


def quality_loss(predicted: Tensor, target: Tensor, rank_weight: float = 0.3) -> Tensor:
    """The loss of FAST-VQA and SAMA: `plcc_loss + rank_weight * rank_loss`; shapes as there."""
    return plcc_loss(predicted, target) + rank_weight * rank_loss(predicted, target)


def _standardise(scores: Tensor) -> Tensor:
    deviation = scores.std(correction=0) + 1e-8
    return (scores - scores.mean()) / deviation
