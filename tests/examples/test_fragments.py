"""Spatial and temporal fragments against the published sampler and against plain slicing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from published_cut import cut, published_fragments

from vqa.sampling.fragments import Mosaic, cut_frame, draw_offsets, enlarge
from vqa.sampling.frames import ClipSampling, draw_clips

DATA = Path(__file__).parents[1] / "data"
SPATIAL = np.load(DATA / "fast_spatial_fragments.npz")
TEMPORAL = np.load(DATA / "frame_sampling.npz")
# At 180x320 the published sampler enlarges the frames and goes on with the grid of the small ones.
ENLARGED = (32, 180, 320)
SIZES = [(32, 360, 640), (64, 360, 640), (32, 224, 224), (32, 231, 400), (32, 640, 360)]


def formula_video(frames: int, height: int, width: int) -> torch.Tensor:
    """The conformance set's synthetic pixels, uint8 [3, T, H, W]; bytes wrap as it does."""
    c, t, y, x = (torch.arange(n) for n in (3, frames, height, width))
    still = 3 * x + 5 * y[:, None] + 40 * c[:, None, None] + x * y[:, None] // 97
    return (still % 256).byte()[:, None] + (7 * t % 256).byte()[:, None, None]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_fragments_are_the_published_ones(size):
    key = "fragments_seed0/{}x{}x{}".format(*size)
    rows, columns = (torch.tensor(SPATIAL[f"{key}/{name}"]) for name in ("rnd_h", "rnd_w"))

    frames = [
        cut_frame(frame, (rows[..., time // 32], columns[..., time // 32]), 32)
        for time, frame in enumerate(formula_video(*size).permute(1, 2, 3, 0).numpy())
    ]

    fragments = torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2)
    places = torch.randint(fragments.numel(), (2000,), generator=torch.Generator().manual_seed(0))
    assert list(fragments.shape) == SPATIAL[f"{key}_uint8/shape"].tolist()
    assert fragments.flatten()[:200].tolist() == SPATIAL[f"{key}_uint8/first200"].tolist()
    assert fragments.flatten()[places].tolist() == SPATIAL[f"{key}_uint8/sample2000"].tolist()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_offsets_are_drawn_as_the_published_sampler_draws_them(size):
    key = "fragments_seed0/{}x{}x{}".format(*size)

    rows, columns = draw_offsets(
        Mosaic(7, 32),
        size[1:],
        segments=size[0] // 32,
        generator=torch.Generator().manual_seed(0),
    )

    assert rows[0].tolist() == SPATIAL[f"{key}/rnd_h"].tolist()
    assert columns[0].tolist() == SPATIAL[f"{key}/rnd_w"].tolist()


@pytest.mark.parametrize("size", [*SIZES, ENLARGED], ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_published_fragments_are_the_published_ones_in_every_respect(size, dtype):
    key = "fragments_seed0/{}x{}x{}_{}".format(*size, dtype)
    video = formula_video(*size).to(getattr(torch, dtype))

    fragments = published_fragments(video, torch.Generator().manual_seed(0))

    # Enlarged levels, up to 255, are rounded by the processor and the version of torch, to 2e-5 of
    # themselves; cut off to integers, a few are one lower then.
    level, mean = (
        (0, 0) if size != ENLARGED else {"float32": (5e-3, 1e-3), "uint8": (1, 0.05)}[dtype]
    )
    places = torch.randint(fragments.numel(), (2000,), generator=torch.Generator().manual_seed(0))
    found = fragments.double()
    blocks = found.unflatten(1, (-1, 16)).unflatten(3, (7, 32)).unflatten(5, (7, 32))
    assert fragments.dtype == video.dtype
    assert list(fragments.shape) == SPATIAL[f"{key}/shape"].tolist()
    for values, name, tolerance in [
        (found.flatten()[:200], "first200", {"rtol": 0, "atol": level}),
        (found.flatten()[places], "sample2000", {"rtol": 0, "atol": level}),
        (found.mean(), "mean", {"rtol": 1e-9, "atol": mean}),
        (found.std(), "std", {"rtol": 1e-9, "atol": mean}),
        (blocks.mean((2, 4, 6)), "patch32_block16_mean", {"rtol": 1e-6, "atol": mean}),
    ]:
        np.testing.assert_allclose(values, SPATIAL[f"{key}/{name}"].astype(float), **tolerance)


def test_published_offsets_are_not_drawn_for_a_side_without_slack():
    generator = torch.Generator().manual_seed(0)
    rows, columns = draw_offsets(Mosaic(7, 32), (180, 320), generator=generator, as_published=True)

    key = "fragments_seed0/32x180x320"
    assert rows[0].tolist() == SPATIAL[f"{key}/rnd_h"].tolist()
    assert columns[0].tolist() == SPATIAL[f"{key}/rnd_w"].tolist()


@pytest.mark.parametrize("laid_over", [None, (30, 44)])
def test_every_patch_is_a_slice_of_its_cell(laid_over):
    frame = np.random.default_rng(0).integers(0, 256, (40, 61, 3), dtype=np.uint8)
    generator = torch.Generator().manual_seed(0)
    rows, columns = draw_offsets(Mosaic(3, 5), laid_over or (40, 61), generator=generator)

    found = cut_frame(frame, (rows[0, :, :, 0], columns[0, :, :, 0]), 5, laid_over)

    planes = torch.from_numpy(frame).permute(2, 0, 1)[None, :, None]
    expected = cut(planes, rows, columns, 5, laid_over)[0, :, 0]
    assert torch.from_numpy(found).permute(2, 0, 1).equal(expected)


@pytest.mark.parametrize("size", [(180, 320), (320, 180), (100, 500), (223, 224)], ids=str)
def test_small_frames_are_enlarged_until_the_mosaic_fits(size):
    frames = formula_video(2, *size)

    large = enlarge(frames, 224)

    height, width = large.shape[-2:]
    assert min(height, width) == 224
    assert height / width == pytest.approx(size[0] / size[1], rel=0.01)
    assert large.dtype == torch.uint8


def test_enlarging_rounds_to_the_nearest_integer():
    # Half-pixel centres put the new pixels a quarter in: 0.75 * 10 + 0.25 * 13 is 10.75.
    frames = torch.tensor([[10, 13]], dtype=torch.uint8)[None, None]

    assert enlarge(frames, 2).tolist() == [[[[10, 11, 12, 13]] * 2]]


def test_large_frames_stay_as_they_are():
    frames = formula_video(1, 30, 40)

    assert enlarge(frames, 30) is frames


def test_without_a_generator_patches_are_in_the_middle_of_the_slack():
    rows, columns = draw_offsets(Mosaic(2, 3), (20, 6))

    assert rows.unique().tolist() == [3]
    assert columns.unique().tolist() == [0]
    assert rows.shape == (1, 2, 2, 1)


@pytest.mark.parametrize(("clips", "length"), [(1, 20), (1, 50), (1, 64), (4, 150), (4, 257)])
def test_a_video_without_slack_starts_again_as_published(clips, length):
    numbers = draw_clips(torch.tensor([length]), ClipSampling(clips=clips))

    published = TEMPORAL[f"fast_fragment_seed0/n{clips}_T{length}"]
    assert numbers.flatten().tolist() == published.tolist()


def test_drawn_clips_lie_in_their_segment():
    lengths = torch.tensor([150, 300, 600])
    generator = torch.Generator().manual_seed(0)
    clips = ClipSampling(clips=4)
    draws = torch.stack([draw_clips(lengths, clips, generator)[..., 0] for _ in range(500)])

    for video, length in enumerate(lengths.tolist()):
        lowest = TEMPORAL[f"fast_fragment_range/n4_T{length}_minstart"]
        highest = TEMPORAL[f"fast_fragment_range/n4_T{length}_maxstart"]
        assert draws[:, video].amin(0).tolist() == lowest.tolist()
        assert draws[:, video].amax(0).tolist() == highest.tolist()


def test_without_a_generator_a_clip_is_in_the_middle_of_its_segment():
    numbers = draw_clips(torch.tensor([20, 8]), ClipSampling(clips=2, frames=4, interval=1))

    assert numbers[..., 0].tolist() == [[3, 13], [0, 4]]
