"""The synthetic opinion score follows its documentation."""

import numpy as np
import pytest
from video_files import textured_clip

from vqa.synthetic.degradations import Link
from vqa.synthetic.opinion import (
    Content,
    Opinion,
    expected_quality,
    measure_content,
    rate,
    visible_strength,
)

AVERAGE = Content(texture=0.5, motion=0.5)
NO_MASKING = Opinion(masking=0.0)


def test_a_chain_without_strength_is_excellent():
    assert expected_quality((Link("h264", 0.0),), AVERAGE, Opinion()) == 5


def test_at_the_midpoint_quality_is_in_the_middle_of_the_scale():
    quality = expected_quality((Link("h264", 0.5),), AVERAGE, NO_MASKING)

    assert quality == pytest.approx(3.0)


def test_impairments_add_up_as_the_sides_of_a_right_triangle():
    two = (Link("blur", 0.3), Link("h264", 0.4))

    assert expected_quality(two, AVERAGE, NO_MASKING) == pytest.approx(3.0)


def test_quality_falls_with_strength():
    qualities = [
        expected_quality((Link("noise", strength), Link("h264", 0.05)), AVERAGE, Opinion())
        for strength in np.linspace(0, 1, 9)
    ]

    assert qualities == sorted(qualities, reverse=True)


@pytest.mark.parametrize(
    ("kind", "hiding", "revealing"),
    [
        ("noise", Content(0.9, 0.5), Content(0.1, 0.5)),
        ("mpeg4", Content(0.9, 0.5), Content(0.1, 0.5)),
        ("blur", Content(0.1, 0.5), Content(0.9, 0.5)),
        ("rescale", Content(0.1, 0.5), Content(0.9, 0.5)),
        ("frozen", Content(0.5, 0.1), Content(0.5, 0.9)),
        ("stutter", Content(0.5, 0.1), Content(0.5, 0.9)),
    ],
)
def test_content_masks_what_it_resembles(kind, hiding, revealing):
    hidden, seen = (visible_strength(Link(kind, 0.6), c, Opinion()) for c in (hiding, revealing))

    assert hidden < seen <= 0.6


@pytest.mark.parametrize("kind", ["exposure", "fading"])
def test_wrong_tones_count_half(kind):
    assert visible_strength(Link(kind, 0.6), AVERAGE, Opinion()) == pytest.approx(0.3)


def test_content_is_measured_between_neighbours():
    clip = textured_clip()
    flat, still = np.full_like(clip, 90), np.repeat(clip[:1], 6, axis=0)

    assert measure_content(flat) == Content(0.0, 0.0)
    assert measure_content(still).motion == 0
    assert measure_content(still).texture == pytest.approx(measure_content(clip).texture, rel=0.05)
    assert measure_content(clip).motion > 0.5


def test_scores_are_means_of_answers_on_a_five_point_scale():
    opinion = Opinion(raters=8)

    scores = rate([0.0, 2.5, 9.0], opinion, np.random.default_rng(0))

    assert np.allclose(scores * 8, np.rint(scores * 8))
    assert scores.min() >= 1
    assert scores.max() <= 5


def test_many_raters_agree_on_the_perceived_quality():
    opinion = Opinion(raters=4000, rater_bias=0.0)

    assert rate([2.0, 3.4], opinion, np.random.default_rng(0)) == pytest.approx([2, 3.4], abs=0.05)


def test_a_raters_bias_moves_all_scores_alike():
    opinion = Opinion(raters=5, rater_bias=0.7, rater_noise=0.0)

    shifts = rate([3.0, 2.0], opinion, np.random.default_rng(1)) - [3.0, 2.0]

    assert shifts[0] == pytest.approx(shifts[1])
    assert abs(shifts[0]) > 0.1  # answers of five raters are fifths
