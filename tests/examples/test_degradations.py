"""What every degradation does to a clip, and that chains end in a real encoder."""

import io
from itertools import pairwise

import av
import numpy as np
import pytest
from video_files import textured_clip

from vqa.synthetic.degradations import (
    Link,
    blur,
    decode,
    degrade,
    encoder_setting,
    exposure,
    fading,
    frozen,
    motion_blur,
    noise,
    rescale,
    stutter,
)

SPATIAL = [rescale, blur, motion_blur, noise, exposure, fading]
RANDOM = np.random.default_rng(0)


def error(degraded: np.ndarray, clip: np.ndarray) -> float:
    return float(np.abs(degraded.astype(int) - clip).mean())


def sharpness(clip: np.ndarray) -> float:
    return float(np.abs(np.diff(clip.astype(int), axis=2)).mean())


@pytest.mark.parametrize("degradation", [*SPATIAL, frozen, stutter])
def test_shape_and_type_stay(degradation):
    clip = textured_clip()

    degraded = degradation(clip, 0.7, np.random.default_rng(0))

    assert degraded.shape == clip.shape
    assert degraded.dtype == np.uint8


@pytest.mark.parametrize("degradation", SPATIAL)
def test_strength_means_distance_from_the_original(degradation):
    clip = textured_clip()
    errors = [
        error(degradation(clip, strength, np.random.default_rng(0)), clip)
        for strength in (0.1, 0.5, 1.0)
    ]

    assert errors == sorted(errors)
    assert errors[-1] > errors[0]


@pytest.mark.parametrize("degradation", [rescale, blur, motion_blur])
def test_lost_detail_is_lost_contrast_between_neighbours(degradation):
    clip = textured_clip()

    assert sharpness(degradation(clip, 0.8, np.random.default_rng(2))) < 0.7 * sharpness(clip)


def test_noise_is_new_in_every_frame():
    grey = np.full((2, 32, 32, 3), 100, np.uint8)

    noisy = noise(grey, 0.5, np.random.default_rng(0)).astype(int) - 100

    assert abs(np.corrcoef(noisy[0].ravel(), noisy[1].ravel())[0, 1]) < 0.1
    assert noisy.std() == pytest.approx(28 * 0.5 * (0.5 + 0.5 * np.sqrt(100 / 255)), rel=0.1)


def test_bright_areas_are_noisier_than_dark_ones():
    dark, bright = (
        noise(np.full((1, 32, 32, 3), level, np.uint8), 0.5, np.random.default_rng(0)).std()
        for level in (60, 190)
    )

    assert bright > 1.2 * dark


def test_frozen_frames_repeat_one_and_then_jump_ahead():
    clip = textured_clip(frames=10)

    stalled = frozen(clip, 0.5, np.random.default_rng(0))

    repeated = [bool((a == b).all()) for a, b in pairwise(stalled)]
    assert sum(repeated) == round(0.9 * 0.5 * 10) - 1
    moving = [t for t in range(10) if t > 0 and not repeated[t - 1]]
    assert all((stalled[t] == clip[t]).all() for t in moving)


def test_stutter_holds_every_frame_equally_long():
    clip = textured_clip(frames=6)

    assert (stutter(clip, 0.4, RANDOM) == clip[[0, 0, 0, 3, 3, 3]]).all()


@pytest.mark.parametrize(("kind", "codec"), [("h264", "h264"), ("mpeg4", "mpeg4")])
def test_a_chain_is_delivered_as_a_real_file_of_its_codec(kind, codec):
    file = degrade(textured_clip(), (Link(kind, 0.5),), np.random.default_rng(0))

    with av.open(io.BytesIO(file)) as container:
        assert container.streams.video[0].codec_context.name == codec
        assert container.streams.video[0].frames == 6


def test_links_are_applied_in_order():
    clip, delivery = textured_clip(), Link("h264", 0.0)
    blurred_then_noisy, noisy_then_blurred = (
        decode(degrade(clip, (*links, delivery), np.random.default_rng(0)))
        for links in (
            (Link("blur", 0.8), Link("noise", 0.8)),
            (Link("noise", 0.8), Link("blur", 0.8)),
        )
    )

    assert sharpness(blurred_then_noisy) > 2 * sharpness(noisy_then_blurred)


@pytest.mark.parametrize("kind", ["h264", "mpeg4"])
def test_an_upload_that_was_encoded_before_is_worse_on_delivery(kind):
    clip, delivery = textured_clip(), Link("h264", 0.1)
    once, twice = (
        error(decode(degrade(clip, (*links, delivery), np.random.default_rng(0))), clip)
        for links in ((), (Link(kind, 0.9),))
    )

    assert twice > once


@pytest.mark.parametrize(("kind", "best", "worst"), [("h264", 14, 46), ("mpeg4", 1, 31)])
def test_strength_spans_the_quantisers(kind, best, worst):
    assert encoder_setting(Link(kind, 0.0)) == (kind, best)
    assert encoder_setting(Link(kind, 1.0)) == (kind, worst)


def test_only_encoders_deliver():
    with pytest.raises(ValueError, match="expected 'h264' or 'mpeg4' as delivery, got 'blur'"):
        degrade(textured_clip(), (Link("blur", 0.5),), RANDOM)
