"""Agreement with opinion scores against the published numbers and against definitions."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vqa.metrics import LogisticFitError, agreement, fit_logistic, rescale

CONFORMANCE = np.load(Path(__file__).parents[1] / "data" / "losses_metrics.npz")


def test_all_four_metrics_are_the_published_ones():
    result = agreement(CONFORMANCE["metrics/pred"], CONFORMANCE["metrics/gt"])

    found = [result.srcc, result.plcc, result.krcc, result.rmse]
    np.testing.assert_allclose(found, CONFORMANCE["metrics/srcc_plcc_krcc_rmse"], atol=1e-12)


def test_rescaling_is_the_published_one():
    rescaled = rescale(CONFORMANCE["rescale/pr"], CONFORMANCE["rescale/gt"])

    np.testing.assert_allclose(rescaled, CONFORMANCE["rescale/with_gt"], atol=1e-12)


def test_srcc_is_the_pearson_correlation_of_ranks():
    random = np.random.default_rng(0)
    predicted, target = random.normal(size=(2, 30))
    ranks = [values.argsort().argsort() for values in (predicted, target)]

    assert agreement(predicted, target).srcc == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_krcc_counts_concordant_pairs():
    random = np.random.default_rng(1)
    predicted, target = random.normal(size=(2, 20))
    signs = [
        np.sign(predicted[i] - predicted[j]) * np.sign(target[i] - target[j])
        for i, j in combinations(range(20), 2)
    ]

    assert agreement(predicted, target).krcc == pytest.approx(np.mean(signs))


def test_rmse_follows_from_plcc_after_rescaling():
    random = np.random.default_rng(2)
    predicted, target = random.normal(size=(2, 25))
    result = agreement(predicted, target)

    assert result.rmse == pytest.approx(target.std() * np.sqrt(2 * (1 - result.plcc)))


@pytest.mark.parametrize(
    ("predicted", "target"),
    [
        ([1.0, 2.0], [1.0, 2.0, 3.0]),
        ([1.0], [1.0]),
        ([1.0, 1.0], [1.0, 2.0]),
        ([1.0, float("nan")], [1.0, 2.0]),
    ],
    ids=["lengths", "too few", "constant", "not finite"],
)
def test_undefined_correlations_are_errors(predicted, target):
    with pytest.raises(ValueError, match="expected"):
        agreement(predicted, target)


@pytest.mark.parametrize("case", ["fit", "fit2"])
def test_the_logistic_fit_is_the_published_one(case):
    outputs, labels = CONFORMANCE[f"{case}/outputs"], CONFORMANCE[f"{case}/labels"]
    fitted = fit_logistic(outputs, labels, "released")

    np.testing.assert_allclose(fitted, CONFORMANCE[f"{case}/fitted"], rtol=1e-6)


@pytest.mark.parametrize("case", ["fit", "fit2"])
def test_agreement_after_a_logistic_fit_is_the_published_one(case):
    result = agreement(
        CONFORMANCE[f"{case}/outputs"],
        CONFORMANCE[f"{case}/labels"],
        logistic_fit=True,
        logistic_start="released",
    )

    found = [result.plcc, result.srcc, result.krcc, result.rmse]
    np.testing.assert_allclose(found, CONFORMANCE[f"{case}/plcc_srcc_krcc_rmse"], rtol=1e-7)


def test_scores_on_a_logistic_curve_are_met():
    predicted = np.linspace(-3, 3, 40)  # mean 1.8e-16, on which finite differences get stuck
    target = 1 + 4 / (1 + np.exp(-(predicted - 0.3) / 0.8))

    for start in ("fixed", "released"):
        np.testing.assert_allclose(fit_logistic(predicted, target, start), target, atol=1e-6)


def rated(seed, scale):
    """Scores of 40 files on a scale from 0 to `scale`, and opinions that go along with them."""
    random = np.random.default_rng(seed)
    quality = random.uniform(size=40)
    return scale * quality, 1 + 4 * quality + random.normal(size=40)


def test_the_released_start_can_be_worse_than_no_fit_and_the_usual_one_never_is():
    worse = {"fixed": 0, "released": 0}
    for seed in range(20):
        predicted, target = rated(seed, 100.0)
        unfitted = abs(np.corrcoef(predicted, target)[0, 1])
        for start in worse:
            options = {"logistic_fit": True, "logistic_start": start}
            worse[start] += agreement(predicted, target, **options).plcc < unfitted - 1e-9

    assert worse["fixed"] == 0
    assert worse["released"] > 0


@pytest.mark.parametrize("factor", [1e-3, 0.01, 20.0, 1e4])
def test_a_fit_does_not_depend_on_the_scale_of_the_scores(factor):
    for seed in range(5):
        predicted, target = rated(seed, 1.0)

        here = fit_logistic(predicted, target)
        there = fit_logistic(factor * predicted - 3, target)
        told = fit_logistic(predicted, factor * target - 3)

        np.testing.assert_allclose(there, here, atol=1e-4)
        np.testing.assert_allclose((told + 3) / factor, here, atol=1e-4)


def test_a_fit_is_at_least_as_close_as_the_line_of_scipy():
    for seed in range(5):
        predicted, target = rated(seed, 100.0)
        line = stats.linregress(predicted, target)
        off = target - (line.intercept + line.slope * predicted)

        assert np.std(fit_logistic(predicted, target) - target) <= np.std(off) + 1e-9


def test_where_no_curve_fits_better_the_line_is_taken():
    predicted = np.linspace(0, 1, 30)
    target = 2 * predicted + 1

    np.testing.assert_allclose(fit_logistic(predicted, target), target, atol=1e-3)


def test_a_logistic_fit_leaves_ranks_as_they_are():
    random = np.random.default_rng(3)
    predicted = random.normal(size=50)
    target = np.tanh(predicted) + 0.3 * random.normal(size=50)

    raw, fitted = (agreement(predicted, target, logistic_fit=fit) for fit in (False, True))

    assert (fitted.srcc, fitted.krcc) == (raw.srcc, raw.krcc)
    assert fitted.plcc > raw.plcc


@pytest.mark.parametrize(
    ("predicted", "target"),
    [
        (np.array([1.0, 2.0, 3.0]), np.array([2.0, 1.0, 3.0])),
        (np.linspace(0, 1e-9, 30), np.tile([1.0, 5.0], 15)),
        (np.array([1.0, np.nan, 2.0, 3.0, 4.0]), np.arange(5.0)),
    ],
    ids=["fewer scores than parameters", "flat", "not finite"],
)
def test_scores_that_no_logistic_curve_fits_are_an_error(predicted, target):
    with pytest.raises(LogisticFitError, match="expected scores that a logistic curve fits"):
        fit_logistic(predicted, target, "released")


def test_agreement_has_no_plcc_where_no_logistic_curve_fits():
    result = agreement([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], logistic_fit=True)

    assert np.isnan([result.plcc, result.rmse]).all()
    assert result.srcc == pytest.approx(1)
    assert result.krcc == pytest.approx(1)


def test_correlations_are_those_of_scipy():
    random = np.random.default_rng(4)
    predicted, target = random.integers(0, 9, size=(2, 40)) / 2  # with ties
    result = agreement(predicted, target)

    assert result.srcc == stats.spearmanr(predicted, target).statistic
    assert result.plcc == stats.pearsonr(predicted, target).statistic
    assert result.krcc == stats.kendalltau(predicted, target, variant="b").statistic


@given(st.integers(0, 99), st.floats(0.01, 100), st.floats(-100, 100))
def test_agreement_does_not_depend_on_the_scale_of_the_predictions(seed, factor, shift):
    predicted, target = np.random.default_rng(seed).normal(size=(2, 12))
    moved, here = agreement(factor * predicted + shift, target), agreement(predicted, target)

    for name in ("srcc", "plcc", "krcc", "rmse"):
        assert getattr(moved, name) == pytest.approx(getattr(here, name), abs=1e-9)
