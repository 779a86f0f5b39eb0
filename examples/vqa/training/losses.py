"""Losses that compare predicted with opinion scores of a batch, floating [B] or [B, 1] each.

`quality_loss` and its terms train FAST-VQA (Wu et al. 2022) and SAMA, `l1_rank_loss` SimpleVQA (Sun
et al. 2022). SAMA for images uses torch's own `smooth_l1_loss`.
"""

import torch
from torch import Tensor


def plcc_loss(predicted: Tensor, target: Tensor) -> Tensor:
    r"""Linearity: zero when the prediction is an increasing linear function of the target.

    With both z-scored by their population standard deviation and `rho = mean(p * q)`,
    `loss = (MSE(p, q) / 4 + MSE(rho * p, q) / 4) / 2`; 0 for B = 1.
    """
    p, q = _standardise(predicted), _standardise(target)
    rho = (p * q).mean()
    return ((p - q).square().mean() + (rho * p - q).square().mean()) / 8


def rank_loss(predicted: Tensor, target: Tensor) -> Tensor:
    r"""Monotonicity: zero when the prediction orders every pair as the target does.

    `m_ij = max(0, (p_i - p_j) * sgn(q_j - q_i))`, summed over all ordered pairs and divided by
    `B (B - 1) (1 + max m)`; NaN for B = 1, which has no pair.
    """
    p, q = predicted.flatten(), target.flatten()
    disorder = torch.relu((p[:, None] - p) * torch.sign(q - q[:, None]))
    pairs = len(p) * (len(p) - 1)
    return disorder.sum() / pairs / (1 + disorder.max())


def quality_loss(predicted: Tensor, target: Tensor, rank_weight: float = 0.3) -> Tensor:
    """The loss of FAST-VQA and SAMA: `plcc_loss + rank_weight * rank_loss`."""
    return plcc_loss(predicted, target) + rank_weight * rank_loss(predicted, target)


def l1_rank_loss(predicted: Tensor, target: Tensor, *, released_order: bool = False) -> Tensor:
    r"""Mean absolute error plus the disorder of the pairs whose opinion scores are close.

    `mean |p_i - q_i| + sum M_ij max(0, -sgn(q_i - q_j) (p_i - p_j)) / (sum M_ij + 1e-8)`, where
    `M_ij = 1` for `0 < |q_i - q_j| < 1` and 0 otherwise; the rank term is 0 where no pair is close.

    `released_order` exchanges `p` and `q`, as SimpleVQA's training script does. The rank term then
    depends on the predictions through signs only: it changes the value, but not the gradient, which
    is that of the mean absolute error.
    """
    p, q = predicted.flatten(), target.flatten()
    if released_order:
        p, q = q, p
    difference = q[:, None] - q
    close = (difference != 0) & (difference.abs() < 1)
    disorder = torch.relu(-torch.sign(difference) * (p[:, None] - p))
    return (p - q).abs().mean() + (close * disorder).sum() / (close.sum() + 1e-8)


def _standardise(scores: Tensor) -> Tensor:
    deviation = scores.std(correction=0) + 1e-8
    return (scores - scores.mean()) / deviation
