"""Which frames make a clip, against everything that the published samplers were seen to draw."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import RandomState
from test_fragments import TEMPORAL

from vqa.sampling.frames import ClipSampling, draw_frames, published_frames

DRAWS = {
    "fast_fragment_seed0": lambda length, s: published_frames(
        length, s, "fast_vqa", RandomState(0)
    ),
    "sama_test": lambda length, s: published_frames(length, s, "sama", None),
    "sama_train_seed0": lambda length, s: published_frames(length, s, "sama", RandomState(0)),
}
CASES = [key for key in TEMPORAL.files if key.split("/")[0] in DRAWS]


@pytest.mark.parametrize("key", CASES)
def test_published_draws_are_reproduced(key):
    sampler, case = key.split("/")
    clips, length = (int(part[1:]) for part in case.split("_"))

    frames = DRAWS[sampler](length, ClipSampling(clips=clips))

    assert frames.flatten().tolist() == TEMPORAL[key].tolist()


def test_a_clip_of_temporal_fragments_is_reproduced():
    frames = published_frames(240, ClipSampling(frames=4, clips=8), "fast_vqa", RandomState(0))

    assert frames.flatten().tolist() == TEMPORAL["fast_tfrag8_clip32_T240_seed0"].tolist()


@pytest.mark.parametrize("length", [150, 300, 600])
def test_published_clips_begin_within_the_published_range(length):
    random, clips = RandomState(1), ClipSampling(clips=4)
    draws = [published_frames(length, clips, "fast_vqa", random)[:, 0] for _ in range(500)]

    key = f"fast_fragment_range/n4_T{length}"
    assert np.min(draws, 0).tolist() == TEMPORAL[f"{key}_minstart"].tolist()
    assert np.max(draws, 0).tolist() == TEMPORAL[f"{key}_maxstart"].tolist()


@given(
    length=st.integers(1, 400),
    sampling=st.builds(
        ClipSampling,
        frames=st.integers(1, 40),
        interval=st.integers(1, 4),
        clips=st.integers(1, 6),
    ),
    rule=st.sampled_from(["fixed", "fast_vqa", "sama"]),
    seed=st.none() | st.integers(0, 99),
)
def test_every_number_is_a_frame_of_the_video(length, sampling, rule, seed):
    if rule == "fast_vqa" and seed is None:
        seed = 0
    generator = None if seed is None else torch.Generator().manual_seed(seed)

    frames = draw_frames(length, sampling, rule, generator)

    assert frames.shape == (sampling.clips, sampling.frames)
    assert frames.dtype == torch.int64
    assert frames.min() >= 0
    assert frames.max() < length


@pytest.mark.parametrize("rule", ["fixed", "fast_vqa", "sama"])
def test_the_generator_alone_decides(rule):
    def draw(seed):
        np.random.seed(seed)  # noqa: NPY002, what must not matter
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(5)
        return draw_frames(500, ClipSampling(clips=3), rule, generator)

    assert draw(1).equal(draw(2))


def test_the_fixed_test_clips_are_in_the_middle_of_their_segments():
    frames = draw_frames(300, ClipSampling(clips=2), "fixed", None)

    assert frames[:, 0].tolist() == [(150 - 64) // 2, 150 + (150 - 64) // 2]


def test_fast_vqa_needs_a_generator_for_testing_too():
    with pytest.raises(ValueError, match="generator: expected one"):
        draw_frames(100, ClipSampling(), "fast_vqa", None)


@pytest.mark.parametrize("name", ["frames", "interval", "clips"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        ClipSampling(**{name: 0})
