"""How well predictions agree with opinion scores; mean, spread and paired difference over seeds."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.optimize import OptimizeWarning, curve_fit
from scipy.special import expit

# The published evaluation sets no limit that matters; this one ends a hopeless fit within a second.
_EVALUATIONS = 20_000
_PARAMETERS = 4

LogisticStart = Literal["fixed", "released"]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """Spearman, Pearson and Kendall (tau-b) correlation, and the root mean squared error."""

    srcc: float
    plcc: float
    krcc: float
    rmse: float


class LogisticFitError(ValueError):
    """No logistic curve describes how the opinion scores depend on the predictions."""


def rescale(predicted: ArrayLike, target: ArrayLike) -> Array:
    """Predictions [N] moved to the mean and population standard deviation of the target [N]."""
    p, q = np.asarray(predicted, np.float64), np.asarray(target, np.float64)
    rescaled: Array = (p - p.mean()) / p.std() * q.std() + q.mean()
    return rescaled


def fit_logistic(predicted: ArrayLike, target: ArrayLike, start: LogisticStart = "fixed") -> Array:
    """Predictions [N] moved along the logistic curve that brings them closest to the target [N].

    `y = b2 + (b1 - b2) / (1 + exp(-(x - b3) / |b4|))` by least squares, of predictions and targets
    moved to mean 0 and deviation 1, from `b = (max y, min y, 0, 1)`: neither scale matters. Where
    no curve found is closer than the straight line, which is the limit of wide ones, it is the
    line, so that the correlation with the target is never below that of the predictions.

    `"released"` is the published fit: of the values as they are, from
    `b = (max y, min y, mean x, 1/2)`, and never a line. It does not follow the spread of the
    predictions, so the result depends on their scale, and can be worse than no fit. It may fail to
    converge or end at a curve that is flat over the predictions, which is a `LogisticFitError`.
    """
    p, q = np.asarray(predicted, np.float64), np.asarray(target, np.float64)
    if start == "released":
        return _fitted(p, q, p.mean(), 0.5)
    if len(p) < _PARAMETERS or not (np.isfinite(p).all() and np.isfinite(q).all()):
        raise LogisticFitError(
            f"expected scores that a logistic curve fits (at least {_PARAMETERS}, all finite)"
        )
    x: Array = np.asarray(stats.zscore(p), np.float64)
    y: Array = np.asarray(stats.zscore(q), np.float64)
    line = float(np.mean(x * y)) * x
    try:
        curve = _fitted(x, y, 0.0, 1.0)
    except LogisticFitError:
        curve = line
    closest = min(curve, line, key=lambda fitted: _rmse(fitted, y))
    if np.ptp(closest) == 0:
        raise LogisticFitError("expected scores that a logistic curve fits, they are uncorrelated")
    moved: Array = q.mean() + q.std() * closest
    return moved


def _fitted(p: Array, q: Array, middle: float, width: float) -> Array:
    start = (q.max(), q.min(), middle, width)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            # It concerns the uncertainty of the parameters, which nobody asks for.
            warnings.simplefilter("ignore", OptimizeWarning)
            parameters, _ = curve_fit(
                _logistic, p, q, p0=start, jac=_logistic_jacobian, maxfev=_EVALUATIONS
            )
            fitted: Array = _logistic(p, *parameters)
    except (RuntimeError, TypeError, ValueError) as error:  # scipy raises one per cause
        raise LogisticFitError(f"expected scores that a logistic curve fits ({error})") from error
    if not np.isfinite(fitted).all() or np.ptp(fitted) <= 1e-9 * np.ptp(q):
        raise LogisticFitError("expected scores that a logistic curve fits, it became flat")
    return fitted


def agreement(
    predicted: ArrayLike,
    target: ArrayLike,
    *,
    logistic_fit: bool = False,
    logistic_start: LogisticStart = "fixed",
) -> Agreement:
    """Agreement of predictions [N] on any scale with mean opinion scores [N].

    PLCC is taken of the predictions as they are and the RMSE after `rescale`; with `logistic_fit`
    both after `fit_logistic`, as SimpleVQA does, and NaN where it raises. SRCC and KRCC are always
    those of the predictions as they are.
    """
    p, q = np.asarray(predicted, np.float64), np.asarray(target, np.float64)
    if p.ndim != 1 or p.shape != q.shape or len(p) < 2:
        raise ValueError(f"predicted, target: expected two [N], N > 1, got {p.shape} and {q.shape}")
    for name, values in (("predicted", p), ("target", q)):
        if not np.isfinite(values).all() or np.ptp(values) == 0:
            raise ValueError(f"{name}: expected finite values that are not all equal")
    if logistic_fit:
        try:
            fitted = fit_logistic(p, q, logistic_start)
            plcc, rmse = float(stats.pearsonr(fitted, q).statistic), _rmse(fitted, q)
        except LogisticFitError:
            plcc = rmse = math.nan
    else:
        plcc, rmse = float(stats.pearsonr(p, q).statistic), _rmse(rescale(p, q), q)
    srcc, krcc = stats.spearmanr(p, q).statistic, stats.kendalltau(p, q).statistic
    return Agreement(float(srcc), plcc, float(krcc), rmse)


def _rmse(p: Array, q: Array) -> float:
    return float(np.sqrt(np.mean((p - q) ** 2)))


def _logistic(x: Array, highest: float, lowest: float, middle: float, width: float) -> Array:
    curve: Array = lowest + (highest - lowest) * expit((x - middle) / abs(width))
    return curve


def _logistic_jacobian(
    x: Array, highest: float, lowest: float, middle: float, width: float
) -> Array:
    """Derivatives [N, 4]; finite differences never move a middle that starts at nearly 0."""
    z = (x - middle) / abs(width)
    curve = expit(z)
    slope = (highest - lowest) * curve * (1 - curve)
    return np.stack([curve, 1 - curve, -slope / abs(width), -slope * z / width], axis=1)


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (0 for a single value)."""

    mean: float
    spread: float


@dataclass(frozen=True)
class PairedDifference(Summary):
    """Difference of two methods over the same n seeds."""

    p_value: float  # of a two-sided paired t-test, NaN for n < 2
    falls: int  # on how many seeds the difference is negative
    n: int


def summarise(values: Sequence[float]) -> Summary:
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return Summary(float(np.mean(values)), spread)


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> PairedDifference:
    differences = [a - b for a, b in zip(values, baseline, strict=True)]
    summary = summarise(differences)
    # Equal differences have no spread: the t statistic is undefined and scipy would warn.
    testable = summary.spread > 1e-12
    p_value = float(stats.ttest_rel(values, baseline).pvalue) if testable else math.nan
    falls = sum(difference < 0 for difference in differences)
    return PairedDifference(summary.mean, summary.spread, p_value, falls, len(differences))
