"""Uncertainty over the test items, which runs from all seeds have in common."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

_RESAMPLES = 1000


def interval_over_items(
    predicted: ArrayLike, baseline: ArrayLike, scores: ArrayLike, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of a difference in SRCC, mean over runs, if other items had been tested on.

    Percentiles over bootstrap samples of the items (Efron 1979), each the same for both methods.

    Args:
        predicted: of one method, [runs, N].
        baseline: of the other, [runs, N].
        scores: opinion scores of the items, [N].
        seed: draws the samples.

    Returns:
        The ends of the interval of the method's SRCC minus the baseline's; NaN where a correlation
        is never defined.
    """
    own, other, target = (np.asarray(v, np.float64) for v in (predicted, baseline, scores))
    generator = np.random.default_rng(seed)
    draws = generator.integers(len(target), size=(_RESAMPLES, len(target)))
    differences = [
        mean_srcc(own[:, drawn], target[drawn]) - mean_srcc(other[:, drawn], target[drawn])
        for drawn in draws
    ]
    defined = [difference for difference in differences if np.isfinite(difference)]
    low, high = np.percentile(defined, [2.5, 97.5]) if defined else (np.nan, np.nan)
    return float(low), float(high)


def mean_srcc(predicted: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
    """Mean over runs of the SRCC of predictions [runs, N] with scores [N].

    >>> mean_srcc(np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]), np.array([1.0, 2.0, 3.0]))
    0.0
    """
    ranks, wanted = stats.rankdata(predicted, axis=1), stats.rankdata(scores)
    ranks -= ranks.mean(axis=1, keepdims=True)
    wanted -= wanted.mean()
    norms = np.linalg.norm(ranks, axis=1) * np.linalg.norm(wanted)
    with np.errstate(invalid="ignore"):  # NaN where all values of a run or all scores are equal
        return float(np.mean(ranks @ wanted / norms))
