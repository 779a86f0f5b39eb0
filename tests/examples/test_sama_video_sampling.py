"""SAMA's scaling and masking of video against the published sampler and against resized frames."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from published_samples import assert_published, formula_video, scale_and_mask
from torch.nn.functional import interpolate

from vqa.sampling.sama_video import SamaSampling, ladder

PUBLISHED = np.load(Path(__file__).parents[1] / "data" / "sama_vqa_sampling.npz")
SAMPLES = sorted({key.rsplit("/", 1)[0] for key in PUBLISHED.files if "/" in key})
LADDERS = sorted(key for key in PUBLISHED.files if key.startswith("geom"))
VARIANTS = ["sama", "sama-c", "sama-mix", "sama-spm", "sama-swm", "fragments"]

variants = st.sampled_from(VARIANTS)
seeds = st.none() | st.integers(0, 99)
sides = st.integers(1, 40)


def tiny(variant="sama"):
    return SamaSampling(variant=variant, grid=2, patch=8)


def generator_of(seed):
    return None if seed is None else torch.Generator().manual_seed(seed)


def clips_of(frames, clips=1):
    """[3, clips * T, H, W] -> [clips, 3, T, H, W]"""
    return frames.unflatten(1, (clips, -1)).transpose(0, 1)


def noise(frames, height, width):
    return torch.randint(
        256,
        (3, frames, height, width),
        generator=torch.Generator().manual_seed(height),
        dtype=torch.uint8,
    )


def assert_same_levels(first, second):
    """Up to rounding, which differs with the place of a value in memory."""
    assert_allclose(first, second, rtol=0, atol=1e-3)


@pytest.mark.parametrize("key", SAMPLES)
def test_mosaics_are_the_published_ones(key):
    setting, variant = key.split("/")
    phase, *_, size = setting.split("_")
    clips = 1 if phase == "train" else 4
    frames = formula_video(32 * clips, *map(int, size.split("x")))

    mosaics = scale_and_mask(
        clips_of(frames.float() if variant == "fragments_float" else frames, clips),
        SamaSampling(variant=variant.split("_")[0]),
        generator_of(0) if phase == "train" else None,
    )

    assert_published(torch.cat(list(mosaics), dim=1), PUBLISHED, key, atol=1e-3)


@pytest.mark.parametrize("key", LADDERS)
def test_the_ladder_resizes_to_the_published_sizes(key):
    height, width = map(int, key.removeprefix("geom_").split("x"))

    scales = ladder("sama", 32, smallest=1 / (min(height, width) / 224))

    sizes = [[round(height * scale), round(width * scale)] for scale in scales]
    assert sizes == PUBLISHED[key][:, :2].tolist()


@pytest.mark.parametrize("key", LADDERS)
def test_patches_lie_where_the_published_ones_do(key):
    """A ramp survives resizing: its values at a patch's corner tell where that was cut."""
    height, width = map(int, key.removeprefix("geom_").split("x"))
    ramps = torch.stack(
        [
            torch.arange(height).float()[:, None].expand(-1, width),
            torch.arange(width).float().expand(height, -1),
            torch.zeros(height, width),
        ]
    )

    mosaics = scale_and_mask(ramps[None, :, None].expand(-1, -1, 32, -1, -1), SamaSampling())[0]

    resized_h, resized_w, _, _, offset_y, offset_x, last_y, last_x = PUBLISHED[key].T
    rows = (last_y + offset_y + 0.5) * height / resized_h - 0.5
    columns = (last_x + offset_x + 0.5) * width / resized_w - 0.5
    assert_allclose(mosaics[0, ::2, 192, 192], rows, atol=1e-3)
    assert_allclose(mosaics[1, ::2, 192, 192], columns, atol=1e-3)


@pytest.mark.parametrize(
    ("frames", "steps"),
    [
        (1, [1]),
        (2, [1]),
        (4, [1, 0.5]),
        (5, [1, 0.75, 0.5]),
        (6, [1, 0.75, 0.5]),
    ],
)
def test_any_number_of_frames_goes_down_the_whole_ladder(frames, steps):
    assert ladder("sama", frames, smallest=0.5) == steps


@pytest.mark.parametrize(
    ("variant", "steps"),
    [
        ("sama-mix", [1, 0.75, 0.5, 1, 0.75]),
        ("sama-c", [1, 0.5, 1, 0.5, 1]),
        ("fragments", [1, 1, 1, 1, 1]),
    ],
)
def test_other_ladders_repeat(variant, steps):
    assert ladder(variant, 10, smallest=0.5) == steps


def test_the_smallest_step_is_the_resized_frame_where_the_mosaic_covers_it():
    frames = noise(2, 48, 48)
    resized = interpolate(frames.float().transpose(0, 1), size=(16, 16), mode="bilinear")

    mosaics = scale_and_mask(clips_of(frames.repeat(1, 2, 1, 1)), tiny())[0]

    assert_allclose(mosaics[:, 2:], resized.transpose(0, 1), atol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_frame_of_the_mosaic_s_size_is_left_alone(variant):
    frames = noise(5, 16, 16)

    assert scale_and_mask(frames[None], tiny(variant), generator_of(0))[0].equal(frames.float())


@pytest.mark.parametrize(("variant", "square"), [("sama-spm", 4), ("sama-swm", 8)])
def test_masks_show_full_resolution_on_even_squares_and_the_ladder_on_odd_ones(variant, square):
    frames = noise(5, 30, 41)
    even = torch.tensor(
        [[(y // square + x // square) % 2 == 0 for x in range(16)] for y in range(16)]
    )

    masked, ladder_only = (
        scale_and_mask(frames[None], tiny(name), generator_of(1))[0] for name in (variant, "sama")
    )
    still = frames[:, :1].expand_as(frames)
    full = scale_and_mask(still[None], tiny("sama"), generator_of(1))[0][:, 0]

    assert_same_levels(masked[:, :, ~even], ladder_only[:, :, ~even])
    still_masked = scale_and_mask(still[None], tiny(variant), generator_of(1))[0]
    assert_same_levels(still_masked[:, :, even], full[:, None].expand_as(still_masked)[:, :, even])


def test_a_clip_is_sampled_alike_alone_and_among_others():
    frames = noise(10, 30, 41)

    together = scale_and_mask(clips_of(frames, 2), tiny())
    alone = [scale_and_mask(frames[None, :, first : first + 5], tiny())[0] for first in (0, 5)]

    assert_same_levels(together, torch.stack(alone))


def test_clips_of_a_training_sample_are_cut_at_places_of_their_own():
    clip = noise(5, 90, 90)

    first, second = scale_and_mask(torch.stack([clip, clip]), tiny(), generator_of(0))

    assert not first.equal(second)


def test_all_draws_come_from_the_generator():
    frames = noise(5, 90, 90)
    state = torch.get_rng_state()

    first, again, other = (
        scale_and_mask(frames[None], tiny(), generator_of(seed)) for seed in (3, 3, 4)
    )

    assert first.equal(again)
    assert not first.equal(other)
    assert torch.get_rng_state().equal(state)


def test_the_order_of_channels_in_memory_does_not_matter():
    frames = noise(5, 30, 41)
    channels_last = frames.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)

    first, last = (scale_and_mask(layout[None], tiny()) for layout in (frames, channels_last))

    assert_same_levels(first, last)


@given(variant=variants, seed=seeds, height=sides, width=sides, level=st.integers(0, 255))
def test_a_constant_video_stays_constant(variant, seed, height, width, level):
    frames = torch.full((1, 3, 5, height, width), level, dtype=torch.uint8)

    mosaics = scale_and_mask(frames, tiny(variant), generator_of(seed))

    assert mosaics.equal(torch.full((1, 3, 5, 16, 16), float(level)))


@given(
    variant=variants,
    seed=seeds,
    height=sides,
    width=sides,
    frames=st.integers(1, 7),
    clips=st.integers(1, 3),
)
def test_any_size_gives_finite_mosaics_within_the_range_of_the_frames(
    variant, seed, height, width, frames, clips
):
    video = 50 + noise(frames * clips, height, width) // 2

    mosaics = scale_and_mask(clips_of(video, clips), tiny(variant), generator_of(seed))

    assert mosaics.shape == (clips, 3, frames, 16, 16)
    assert mosaics.dtype == torch.float32
    assert video.min() <= mosaics.min()
    assert mosaics.max() <= video.max()


@given(height=st.integers(16, 60), width=st.integers(16, 60))
def test_the_last_step_holds_patches_from_the_middle_of_the_resized_frame_s_cells(height, width):
    frames = noise(6, height, width)
    resized = interpolate(
        frames[:, 4:].float(),
        size=(round(height * 16 / min(height, width)), round(width * 16 / min(height, width))),
        mode="bilinear",
    )

    last = scale_and_mask(frames[None], tiny())[0][:, 4:]

    for i, j in np.ndindex(2, 2):
        top, left = (
            min(length // 2 * cell, length - 8) + int(0.5 * (length // 2 - 8))
            for length, cell in zip(resized.shape[2:], (i, j), strict=True)
        )
        expected = resized[:, :, top : top + 8, left : left + 8]
        assert_allclose(
            last[:, :, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8], expected, rtol=0, atol=0.01
        )


@pytest.mark.parametrize("name", ["sama+spm", "fragment", "SAMA"])
def test_an_unknown_variant_is_an_error(name):
    with pytest.raises(ValueError, match="variant: expected one of sama, sama-c"):
        SamaSampling(variant=name)


@pytest.mark.parametrize("name", ["frames", "interval", "clips", "grid", "patch"])
def test_numbers_below_one_are_errors(name):
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        SamaSampling(**{name: 0})
