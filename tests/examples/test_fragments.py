"""Spatial and temporal fragments against the published sampler and against plain slicing."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vqa.fragments import (
    centre_offsets,
    clip_frame_indices,
    cut_fragments,
    draw_clip_starts,
    draw_offsets,
)

DATA = Path(__file__).parents[1] / "data"
SPATIAL = np.load(DATA / "fast_spatial_fragments.npz")
TEMPORAL = np.load(DATA / "frame_sampling.npz")
# 180x320 is left out: there the published sampler upsamples and goes on with a stale grid.
SIZES = [(32, 360, 640), (64, 360, 640), (32, 224, 224), (32, 231, 400), (32, 640, 360)]


def formula_video(frames: int, height: int, width: int) -> torch.Tensor:
    """The conformance set's synthetic pixels, uint8 [3, T, H, W]."""
    t, y, x = torch.meshgrid(*map(torch.arange, (frames, height, width)), indexing="ij")
    plane = 3 * x + 5 * y + 7 * t + (x * y) // 97
    return torch.stack([(plane + 40 * c) % 256 for c in range(3)]).byte()


def small_frames() -> torch.Tensor:
    return torch.arange(2 * 1 * 4 * 13 * 17).view(2, 1, 4, 13, 17)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_fragments_are_the_published_ones(size):
    key = "fragments_seed0/{}x{}x{}".format(*size)
    offsets = (torch.tensor(SPATIAL[f"{key}/{name}"])[None] for name in ("rnd_h", "rnd_w"))

    cut = cut_fragments(formula_video(*size)[None], *offsets, (32, 32))[0]

    places = torch.randint(cut.numel(), (2000,), generator=torch.Generator().manual_seed(0))
    assert list(cut.shape) == SPATIAL[f"{key}_uint8/shape"].tolist()
    assert cut.flatten()[:200].tolist() == SPATIAL[f"{key}_uint8/first200"].tolist()
    assert cut.flatten()[places].tolist() == SPATIAL[f"{key}_uint8/sample2000"].tolist()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_offsets_are_drawn_as_the_published_sampler_draws_them(size):
    key = "fragments_seed0/{}x{}x{}".format(*size)

    rows, columns = draw_offsets(
        1,
        (7, 7),
        (size[1] // 7 - 32, size[2] // 7 - 32),
        segments=size[0] // 32,
        generator=torch.Generator().manual_seed(0),
    )

    assert rows[0].tolist() == SPATIAL[f"{key}/rnd_h"].tolist()
    assert columns[0].tolist() == SPATIAL[f"{key}/rnd_w"].tolist()


def test_every_patch_is_a_slice_of_its_cell():
    frames, patch = small_frames(), 3
    rows, columns = draw_offsets(2, (2, 3), (3, 2), 2, torch.Generator().manual_seed(1))

    cut = cut_fragments(frames, rows, columns, (patch, patch))

    for b, i, j, t in np.ndindex(2, 2, 3, 4):
        segment = t // 2
        top = 13 // 2 * i + int(rows[b, i, j, segment])
        left = 17 // 3 * j + int(columns[b, i, j, segment])
        expected = frames[b, 0, t, top : top + patch, left : left + patch]
        found = cut[b, 0, t, 3 * i : 3 * i + 3, 3 * j : 3 * j + 3]
        assert found.equal(expected)


def test_patches_stay_in_place_over_a_segment():
    still = torch.rand(1, 1, 1, 20, 20).expand(-1, -1, 4, -1, -1)
    offsets = draw_offsets(1, (2, 2), (6, 6), generator=torch.Generator().manual_seed(0))

    cut = cut_fragments(still, *offsets, (4, 4))

    assert cut.equal(cut[:, :, :1].expand_as(cut))


def test_centre_offsets_are_in_the_middle_of_the_slack():
    rows, columns = centre_offsets(1, (2, 3), (7, 0))

    assert rows.unique().tolist() == [3]
    assert columns.unique().tolist() == [0]
    assert rows.shape == (1, 2, 3, 1)


def test_frames_smaller_than_the_mosaic_are_an_error():
    with pytest.raises(ValueError, match="at least 16 x 16 pixels"):
        cut_fragments(small_frames(), *centre_offsets(2, (2, 2), (0, 0)), (8, 8))


def test_segments_must_divide_the_frames():
    with pytest.raises(ValueError, match="divide 4 frames, got 3"):
        cut_fragments(small_frames(), *centre_offsets(2, (2, 2), (0, 0), 3), (3, 3))


@pytest.mark.parametrize("clips", [1, 4])
@pytest.mark.parametrize("length", [20, 50, 64, 65, 100, 150, 257, 300, 1000])
def test_frame_numbers_are_the_published_ones(clips, length):
    draws = np.random.RandomState(0)
    segment = length // clips
    within = draws.randint(0, segment - 64, clips) if segment > 64 else np.zeros(clips, int)
    starts = torch.tensor(segment * np.arange(clips) + within)[None]

    indices = clip_frame_indices(starts, torch.tensor([length]), length=32, interval=2)

    published = TEMPORAL[f"fast_fragment_seed0/n{clips}_T{length}"]
    assert indices.flatten().tolist() == published.tolist()


def test_drawn_clips_lie_in_their_segment():
    lengths = torch.tensor([150, 300, 600])
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([draw_clip_starts(lengths, 4, 64, generator) for _ in range(500)])

    for video, length in enumerate(lengths.tolist()):
        lowest = TEMPORAL[f"fast_fragment_range/n4_T{length}_minstart"]
        highest = TEMPORAL[f"fast_fragment_range/n4_T{length}_maxstart"]
        assert draws[:, video].amin(0).tolist() == lowest.tolist()
        assert draws[:, video].amax(0).tolist() == highest.tolist()


def test_without_a_generator_a_clip_is_in_the_middle_of_its_segment():
    assert draw_clip_starts(torch.tensor([20, 8]), 2, 4, None).tolist() == [[3, 13], [0, 4]]
