"""Mean, spread and paired difference over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (0 for a single value)."""

    mean: float
    spread: float


@dataclass(frozen=True)
class PairedDifference:
    """Difference of two methods over the same n seeds.

    `p_value` is that of a two-sided paired t-test, NaN for n < 2; `falls` counts the seeds on which
    the difference is negative.
    """

    mean: float
    spread: float
    p_value: float
    falls: int
    n: int


def summarise(values: Sequence[float]) -> Summary:
    """Mean and spread of one or more values.

    >>> summarise([1.0, 3.0])
    Summary(mean=2.0, spread=1.4142135623730951)
    """
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return Summary(float(np.mean(values)), spread)


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> PairedDifference:
    """Difference `values - baseline`, pair by pair.

    Raises:
        ValueError: the two have different lengths.
    """
    differences = [a - b for a, b in zip(values, baseline, strict=True)]
    summary = summarise(differences)
    # Equal differences have no spread: the t statistic is undefined and scipy would warn.
    testable = summary.spread > 1e-12
    p_value = float(stats.ttest_rel(values, baseline).pvalue) if testable else math.nan
    falls = sum(difference < 0 for difference in differences)
    return PairedDifference(summary.mean, summary.spread, p_value, falls, len(differences))
