"""Summaries and paired differences over seeds."""

import math

import numpy as np
import pytest
from scipy import stats

from vqa.metrics import paired_difference, summarise

VALUES, BASELINE = [0.20, 0.15, 0.18, 0.21], [0.25, 0.22, 0.17, 0.28]


def test_spread_is_the_sample_standard_deviation():
    assert summarise(VALUES).mean == pytest.approx(np.mean(VALUES))
    assert summarise(VALUES).spread == pytest.approx(np.std(VALUES, ddof=1))


def test_a_single_value_has_no_spread():
    assert summarise([0.3]).spread == 0


def test_p_value_follows_from_the_t_distribution():
    differences = np.subtract(VALUES, BASELINE)
    t = differences.mean() / (differences.std(ddof=1) / 2)

    result = paired_difference(VALUES, BASELINE)

    assert result.p_value == pytest.approx(2 * stats.t.sf(abs(t), df=3))
    assert result.mean == pytest.approx(differences.mean())


def test_falling_seeds_are_counted():
    result = paired_difference(VALUES, BASELINE)

    assert (result.falls, result.n) == (3, 4)


@pytest.mark.parametrize(("values", "baseline"), [([1.0], [2.0]), ([1.0, 2.0], [1.0, 2.0])])
def test_without_spread_there_is_no_p_value(values, baseline):
    assert math.isnan(paired_difference(values, baseline).p_value)


def test_pairs_must_be_complete():
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        paired_difference(VALUES, BASELINE[:3])
