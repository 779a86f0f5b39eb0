"""Uncertainty over the test items, which runs from all seeds have in common."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

_RESAMPLES = 1000


def resampled_srcc(predicted: ArrayLike, scores: ArrayLike, seed: int = 0) -> NDArray[np.float64]:
    """SRCC, mean over runs, on bootstrap samples of the items (Efron 1979).

    Args:
        predicted: of each run, [runs, N].
        scores: opinion scores of the items, [N].
        seed: draws the samples: the same for every method.

    Returns:
        float64 [1000]; NaN where a sample's values are all equal.
    """
    own, target = np.asarray(predicted, np.float64), np.asarray(scores, np.float64)
    generator = np.random.default_rng(seed)
    draws = generator.integers(len(target), size=(_RESAMPLES, len(target)))
    wanted = _standardised_ranks(target[draws])
    correlations = [(_standardised_ranks(run[draws]) * wanted).sum(axis=1) for run in own]
    mean: NDArray[np.float64] = np.mean(correlations, axis=0)
    return mean


def interval(differences: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of differences between resampled scores; NaN if none is defined."""
    defined = differences[np.isfinite(differences)]
    low, high = np.percentile(defined, [2.5, 97.5]) if len(defined) else (np.nan, np.nan)
    return float(low), float(high)


def _standardised_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks [samples, N] with mean 0 and norm 1."""
    ranks: NDArray[np.float64] = np.asarray(stats.rankdata(values, axis=1), np.float64)
    ranks -= ranks.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):  # NaN where all values are equal
        standardised: NDArray[np.float64] = ranks / np.linalg.norm(ranks, axis=1, keepdims=True)
    return standardised
