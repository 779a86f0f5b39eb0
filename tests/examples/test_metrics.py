"""Agreement with opinion scores against the published numbers and against definitions."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from vqa.metrics import agreement, rescale

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
