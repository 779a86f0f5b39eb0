"""Loading a labelled set and sampling fragments from it."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from published_cut import cut
from torch import Tensor
from torchvision.transforms.v2.functional import rgb_to_grayscale
from video_files import Stream, textured_clip, write_stream, write_video

from benchmarks.generalization_grounds.clips import (
    LumaClips,
    PlaneClips,
    cut_fragments,
    fixed_views,
    load_clips,
    sample_fragments,
    shuffled_batches,
    to_planes,
)
from vqa.datasets import DatasetError
from vqa.io.video import read_frames
from vqa.sampling.augmentation import Augmentation
from vqa.sampling.fragments import Mosaic, draw_offsets, enlarge
from vqa.sampling.tiny_fast_vqa import FragmentSampling, read_planes

SAMPLING = FragmentSampling(grid=2, patch=8, frames=2, interval=2)


def labelled_set(folder: Path, sizes: tuple[int, ...] = (48, 48, 48)) -> Path:
    rows = ""
    for number, height in enumerate(sizes):
        clip = textured_clip(height=height, seed=number)
        write_video(folder / f"v{number}.mp4", clip)
        rows += f"v{number}.mp4, -1, 24, {1 + number}\n"
    (folder / "set.txt").write_text(rows)
    return folder / "set.txt"


def plane_clips(clips: int = 5) -> PlaneClips:
    planes = torch.rand(clips, 3, 6, 32, 40, generator=torch.Generator().manual_seed(0)).half()
    return PlaneClips(planes, torch.arange(float(clips)))


def test_loading_decodes_every_video_and_keeps_its_score(tmp_path):
    clips = load_clips(labelled_set(tmp_path))

    assert clips.luma.shape == (3, 6, 48, 64)
    assert clips.luma.dtype == torch.uint8
    assert clips.scores.tolist() == [1.0, 2.0, 3.0]


def test_a_damaged_video_is_an_error_that_names_list_row_and_video(tmp_path):
    label_list = labelled_set(tmp_path)
    video = tmp_path / "v1.mp4"
    video.write_bytes(video.read_bytes()[:300])

    with pytest.raises(DatasetError, match=r"set\.txt, row 2: .*v1\.mp4: cannot be decoded"):
        load_clips(label_list)


def test_a_video_of_another_size_is_an_error_that_names_row_and_sizes(tmp_path):
    label_list = labelled_set(tmp_path, sizes=(48, 48, 32))

    with pytest.raises(DatasetError, match=r"row 3: expected .*\[6, 48, 64\] .*\[6, 32, 64\]"):
        load_clips(label_list)


def test_planes_are_kept_in_half_precision(tmp_path):
    clips = to_planes(load_clips(labelled_set(tmp_path)))

    assert clips.planes.shape == (3, 3, 6, 48, 64)
    assert clips.planes.dtype == torch.float16


def test_fragments_of_the_clips_asked_for_are_cut_from_the_middle_without_a_generator():
    clips = plane_clips()

    fragments = sample_fragments(clips, torch.tensor([3, 0]), SAMPLING)

    # 6 frames, span 4: frames 1 and 3. Cells of 16 x 20 pixels, patches of 8: offsets 4 and 6.
    assert fragments.shape == (2, 3, 2, 16, 16)
    assert fragments[0, :, :, :8, :8].equal(clips.planes[3, :, 1:4:2, 4:12, 6:14].float())
    assert fragments[1, :, :, 8:, 8:].equal(clips.planes[0, :, 1:4:2, 20:28, 26:34].float())


def test_the_same_generator_state_gives_the_same_fragments():
    draws = [
        sample_fragments(
            plane_clips(), torch.tensor([1]), SAMPLING, torch.Generator().manual_seed(seed)
        )
        for seed in (0, 0, 1)
    ]

    assert draws[0].equal(draws[1])
    assert not draws[0].equal(draws[2])


def test_clips_are_cut_patch_by_patch():
    frames = torch.arange(2 * 3 * 4 * 13 * 17).view(2, 3, 4, 13, 17)
    generator = torch.Generator().manual_seed(1)
    offsets = draw_offsets(Mosaic(2, 3), (13, 17), clips=2, generator=generator)

    assert cut_fragments(frames, offsets, 3).equal(cut(frames, *offsets, 3))


def test_fixed_views_differ_from_each_other_but_not_from_call_to_call():
    first, second = (fixed_views(plane_clips(), SAMPLING, views=2, seed=0) for _ in range(2))

    assert first.shape == (2, 5, 3, 2, 16, 16)
    assert first.equal(second)
    assert not first[0].equal(first[1])


def test_every_epoch_is_a_new_order_of_all_clips():
    batches = shuffled_batches(6, 3, torch.Generator().manual_seed(0))
    epochs = [torch.cat([next(batches), next(batches)]).tolist() for _ in range(2)]

    assert [sorted(epoch) for epoch in epochs] == [list(range(6))] * 2
    assert epochs[0] != epochs[1]


def test_a_partial_batch_is_dropped():
    batches = shuffled_batches(5, 2, torch.Generator().manual_seed(0))

    assert [len(next(batches)) for _ in range(4)] == [2, 2, 2, 2]


def test_a_batch_larger_than_the_set_is_an_error():
    with pytest.raises(ValueError, match="at most the 5 clips there are, got 6"):
        next(shuffled_batches(5, 6, torch.Generator()))


def whole_planes(video: Path) -> PlaneClips:
    """Planes of all whole frames of one video: what is cut from its file has to agree with."""
    return to_planes(LumaClips(read_frames(video, pixels="gray")[0][None], torch.zeros(1)))


# The last one is too large to be kept in memory.
SIZES = [(12, 48, 64), (9, 35, 50), (5, 240, 480)]


@pytest.mark.parametrize(("frames", "height", "width"), SIZES)
@pytest.mark.parametrize("seed", range(3))
def test_what_is_cut_from_a_file_is_what_is_cut_from_its_whole_planes(
    tmp_path, frames, height, width, seed
):
    kind = Stream(options={"g": "4"}, pixels="yuv444p")
    video = write_stream(tmp_path / "v.mp4", textured_clip(frames, height, width), kind)
    generator = torch.Generator().manual_seed(seed)
    training = sample_fragments(whole_planes(video), torch.tensor([0]), SAMPLING, generator)
    testing = fixed_views(whole_planes(video), SAMPLING, views=2, seed=0)[:, 0]

    for _ in range(2):  # again, as it may have been kept
        torch.testing.assert_close(planes_of(video, seed), training, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(planes_of(video, None), testing, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_a_video_of_few_frames_starts_again(tmp_path, frames):
    video = write_video(tmp_path / "v.mp4", textured_clip(frames))

    torch.testing.assert_close(
        planes_of(video, 0),
        sample_fragments(
            whole_planes(video), torch.tensor([0]), SAMPLING, torch.Generator().manual_seed(0)
        ),
        atol=1e-3,
        rtol=1e-3,
    )


def test_a_video_smaller_than_the_mosaic_is_enlarged(tmp_path):
    sampling = FragmentSampling(grid=2, patch=24, frames=2, interval=2)
    clip = np.repeat(np.repeat(textured_clip(6, 12, 18), 2, axis=1), 2, axis=2)
    small = write_stream(tmp_path / "s.mkv", clip, Stream("matroska", "ffv1", pixels="gray"))
    large = enlarge(read_frames(small, pixels="gray"), 48)

    (planes,) = read_planes(small, None, sampling, 1)

    assert large.shape[-2:] == (48, 72)
    clips = to_planes(LumaClips(large, torch.zeros(1)))
    torch.testing.assert_close(
        planes, fixed_views(clips, sampling, 1, seed=0)[0], atol=1e-3, rtol=1e-3
    )


def test_a_file_that_was_written_anew_is_read_anew(tmp_path):
    video = write_video(tmp_path / "v.mp4", textured_clip(seed=0))
    first = planes_of(video, None)
    write_video(video, textured_clip(seed=1))
    os.utime(video, (0, 0))

    assert not planes_of(video, None).equal(first)


def planes_of(video: Path, seed: int | None, augmentation: Augmentation = "none") -> Tensor:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return read_planes(video, generator, SAMPLING, 2, augmentation)[0]


@pytest.mark.parametrize("augmentation", ["auto", "rand", "trivial"])
def test_augmented_views_follow_their_generator_and_test_views_are_not_augmented(
    tmp_path, augmentation
):
    video = write_video(tmp_path / "v.mp4", textured_clip())
    plain = [planes_of(video, seed) for seed in range(4)]
    augmented = [planes_of(video, seed, augmentation) for seed in range(4)]

    assert augmented[0].equal(planes_of(video, 0, augmentation))
    assert any(not a.equal(b) for a, b in zip(plain, augmented, strict=True))
    assert planes_of(video, None, augmentation).equal(planes_of(video, None))


def test_the_luma_of_augmented_colour_frames_is_that_of_the_decoder(tmp_path):
    grey = textured_clip().mean(axis=-1, keepdims=True).repeat(3, axis=-1).astype("uint8")
    video = write_video(tmp_path / "v.mp4", grey)

    luma = read_frames(video, pixels="gray")[0].float()
    of_colour = rgb_to_grayscale(read_frames(video).transpose(0, 1))[:, 0].float()

    # FFmpeg converts colours by instructions of the processor, which round each in their way.
    assert (luma - of_colour).abs().max() <= 4
