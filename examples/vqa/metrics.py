"""How well predictions agree with opinion scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats


@dataclass(frozen=True)
class Agreement:
    """Spearman, Pearson and Kendall (tau-b) correlation, and the root mean squared error."""

    srcc: float
    plcc: float
    krcc: float
    rmse: float


def rescale(predicted: ArrayLike, target: ArrayLike) -> NDArray[np.float64]:
    """Predictions [N] moved to the mean and population standard deviation of the target [N]."""
    p, q = np.asarray(predicted, np.float64), np.asarray(target, np.float64)
    rescaled: NDArray[np.float64] = (p - p.mean()) / p.std() * q.std() + q.mean()
    return rescaled


def agreement(predicted: ArrayLike, target: ArrayLike) -> Agreement:
    """Agreement of predictions [N] with opinion scores [N]; the RMSE is taken after `rescale`.

    Raises:
        ValueError: another shape, fewer than two scores, a value that is not finite, or all
            predictions (or targets) equal: no correlation is defined then.
    """
    p, q = np.asarray(predicted, np.float64), np.asarray(target, np.float64)
    if p.ndim != 1 or p.shape != q.shape or len(p) < 2:
        raise ValueError(f"predicted, target: expected two [N], N > 1, got {p.shape} and {q.shape}")
    for name, values in (("predicted", p), ("target", q)):
        if not np.isfinite(values).all() or np.ptp(values) == 0:
            raise ValueError(f"{name}: expected finite values that are not all equal")
    return Agreement(
        srcc=float(stats.spearmanr(p, q).statistic),
        plcc=float(stats.pearsonr(p, q).statistic),
        krcc=float(stats.kendalltau(p, q).statistic),
        rmse=float(np.sqrt(np.mean((rescale(p, q) - q) ** 2))),
    )
