"""FAST-VQA's clips of real video files, against reading, cutting and normalising step by step."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from published_cut import cut, published_fragments
from video_files import Stream, decode_in_order, textured_clip, turn, write_stream

from vqa.io.video import VideoError
from vqa.sampling.augmentation import draw_augmentation
from vqa.sampling.fast_vqa import (
    FAST_VQA,
    FAST_VQA_M,
    FastVqaSampling,
    read_clips,
)
from vqa.sampling.fragments import draw_offsets
from vqa.sampling.frames import draw_frames

SMALL = FastVqaSampling(frames=4, interval=2, clips=2, grid=3, patch=8)


@pytest.fixture
def path(tmp_path):
    kind = Stream(options={"g": "10", "bf": "3"})
    return write_stream(tmp_path / "v.mp4", textured_clip(30, 48, 64), kind)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def whole_clips(path, numbers):
    """uint8 [clips, 3, T, H, W] of plainly decoded frames."""
    return torch.from_numpy(decode_in_order(path)[numbers]).permute(0, 4, 1, 2, 3)


def normalised(mosaics):
    mean = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1, 1)
    return (mosaics.float() - mean) / torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1, 1)


def test_the_published_settings():
    assert (FAST_VQA.frames, FAST_VQA.interval, FAST_VQA.grid, FAST_VQA.patch) == (32, 2, 7, 32)
    assert (FAST_VQA_M.frames, FAST_VQA_M.grid, FAST_VQA_M.patch) == (16, 4, 32)


def test_testing_takes_the_middle_of_everything(path):
    clips = read_clips(path, SMALL)

    offsets = draw_offsets(SMALL, (48, 64), 2)
    # Segments of 15 frames leave 7 places for 8 frames: the middle one is 3.
    whole = whole_clips(path, np.array([[3, 5, 7, 9], [18, 20, 22, 24]]))
    torch.testing.assert_close(clips, normalised(cut(whole, *offsets, 8)))
    assert clips.is_contiguous()


def test_training_draws_frames_and_then_places(path):
    clips = read_clips(path, SMALL, seeded())

    generator = seeded()
    numbers = draw_frames(30, SMALL, "fixed", generator)
    rows, columns = draw_offsets(SMALL, (48, 64), 1, 2, generator)
    whole = whole_clips(path, numbers.numpy())
    offsets = (offset[0].permute(2, 0, 1)[..., None] for offset in (rows, columns))
    torch.testing.assert_close(clips, normalised(cut(whole, *offsets, 8)))


def test_a_seed_gives_the_same_clips_whatever_the_global_generators_do(path):
    sampling = replace(SMALL, augmentation="trivial")
    first = read_clips(path, sampling, seeded(3))
    torch.rand(5)
    np.random.rand(5)  # noqa: NPY002, what must not matter

    assert read_clips(path, sampling, seeded(3)).equal(first)
    assert not read_clips(path, sampling, seeded(4)).equal(first)


def test_a_short_video_starts_again(tmp_path):
    path = write_stream(tmp_path / "v.mp4", textured_clip(5), Stream())

    clips = read_clips(path, replace(SMALL, clips=1))

    whole = whole_clips(path, np.array([[0, 2, 4, 1]]))
    offsets = draw_offsets(SMALL, (48, 64))
    torch.testing.assert_close(clips, normalised(cut(whole, *offsets, 8)))


def test_portrait_videos_are_cut_as_displayed(path):
    turn(path, 0, 1, -1, 0)

    clips = read_clips(path, SMALL)

    plain = torch.from_numpy(decode_in_order(path)[[[3, 5, 7, 9], [18, 20, 22, 24]]].copy())
    whole = torch.rot90(plain, -1, dims=(2, 3)).permute(0, 4, 1, 2, 3)
    offsets = draw_offsets(SMALL, (64, 48), 2)
    torch.testing.assert_close(clips, normalised(cut(whole, *offsets, 8)))


@pytest.mark.parametrize("patch", [8, 20])
def test_released_behaviour_cuts_as_the_published_code(path, patch):
    """Patches of 8 fit into the frames; for those of 20 the published code enlarges them."""
    sampling = replace(SMALL, behaviour="released", patch=patch)

    clips = read_clips(path, sampling, seeded())

    generator = seeded()
    numbers = draw_frames(30, SMALL, "fast_vqa", generator)
    in_a_row = whole_clips(path, numbers.numpy()).transpose(0, 1).flatten(1, 2)
    fragments = published_fragments(in_a_row, generator, 3, patch, aligned=4)
    torch.testing.assert_close(clips, normalised(fragments.unflatten(1, (2, 4)).transpose(0, 1)))


def test_small_frames_are_enlarged_and_seen_whole(tmp_path):
    """The grid covers the enlarged frame: its last patch reaches the last column's cell."""
    ramp = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[:, None], (48, 64, 3))
    kind = Stream(options={"crf": "1"}, pixels="yuv444p")
    path = write_stream(tmp_path / "v.mp4", np.stack([ramp] * 8), kind)

    fixed = read_clips(path, replace(SMALL, clips=1, patch=32))
    released = read_clips(path, replace(SMALL, clips=1, patch=32, behaviour="released"), seeded())

    levels = [clip[0, 0, 0, 0] * 58.395 + 123.675 for clip in (fixed, released)]
    assert levels[0][-1] > 225
    assert levels[1][-1] < levels[0][-1]


def test_augmentation_comes_before_the_fragments_and_is_drawn_per_clip(path):
    clips = read_clips(path, replace(SMALL, augmentation="auto"), seeded(1))

    generator = seeded(1)
    numbers = draw_frames(30, SMALL, "fixed", generator)
    whole = whole_clips(path, numbers.numpy()).transpose(1, 2)
    changed = torch.stack([draw_augmentation("auto", generator)(clip) for clip in whole]).transpose(
        1, 2
    )
    rows, columns = draw_offsets(SMALL, (48, 64), 1, 2, generator)
    offsets = (offset[0].permute(2, 0, 1)[..., None] for offset in (rows, columns))
    torch.testing.assert_close(clips, normalised(cut(changed, *offsets, 8)))


@pytest.mark.parametrize("change", [{"behaviour": "released"}, {"augmentation": "auto"}])
def test_chance_needs_a_generator(path, change):
    with pytest.raises(ValueError, match="generator: expected one"):
        read_clips(path, replace(SMALL, **change))


@pytest.mark.parametrize(
    "change",
    [{"frames": 0}, {"grid": 0}, {"clips": -1}, {"behaviour": "best"}, {"augmentation": "mix"}],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))}: expected"):
        replace(SMALL, **change)


def test_a_damaged_file_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(bytes(1000))

    with pytest.raises(VideoError, match=r"broken\.mp4: "):
        read_clips(path, SMALL)
