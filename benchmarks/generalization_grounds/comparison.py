"""Differences between methods, seed by seed, with intervals and corrected p values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from vqa.metrics import PairedDifference, paired_difference


@dataclass(frozen=True)
class Comparison:
    """Method minus baseline over the same n seeds."""

    method: str
    baseline: str
    difference: float
    """Mean."""
    low: float
    """Lower end of the 95 % confidence interval of the mean (Student's t)."""
    high: float
    p_value: float
    """Of a two-sided paired t-test; NaN where all differences are equal."""
    p_holm: float
    """The same, corrected by Holm for the comparisons made together."""
    wins: int
    """Seeds on which the method is better."""
    n: int


def compare(
    scores: Mapping[str, Sequence[float]], pairs: Sequence[tuple[str, str]]
) -> list[Comparison]:
    """Compare pairs (method, baseline) of methods, correcting for the number of pairs.

    Args:
        scores: per method one score for each seed, the seeds in the same order.
        pairs: what to compare.

    Raises:
        KeyError: a pair names a method without scores.
        ValueError: the methods of a pair have different numbers of seeds, or fewer than two.
    """
    differences = {
        (method, baseline): [a - b for a, b in zip(scores[method], scores[baseline], strict=True)]
        for method, baseline in pairs
    }
    tests = [paired_difference(scores[method], scores[base]) for method, base in pairs]
    if any(test.n < 2 for test in tests):
        raise ValueError("scores: expected at least two seeds of every method")
    corrected = holm([test.p_value for test in tests])
    comparisons = []
    for pair, test, p_holm in zip(pairs, tests, corrected, strict=True):
        low, high = _interval(differences[pair], test)
        wins = sum(difference > 0 for difference in differences[pair])
        comparisons.append(
            Comparison(
                *pair, test.mean, low, high,
                test.p_value, p_holm, wins, test.n,
            )
        )  # fmt: skip
    return comparisons


def _interval(differences: Sequence[float], test: PairedDifference) -> tuple[float, float]:
    if math.isnan(test.p_value):  # all differences are equal
        return test.mean, test.mean
    interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    return float(interval.low), float(interval.high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down correction: the chance of any false rejection stays below the level.

    A NaN (nothing to test) counts as 1.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    tested = [1.0 if math.isnan(p) else p for p in p_values]
    corrected, worst = [0.0] * len(tested), 0.0
    for rank, place in enumerate(sorted(range(len(tested)), key=lambda i: tested[i])):
        worst = max(worst, min(1.0, (len(tested) - rank) * tested[place]))
        corrected[place] = worst
    return corrected
