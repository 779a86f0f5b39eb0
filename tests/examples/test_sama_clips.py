"""Reading a video file for SAMA."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from published_samples import scale_and_mask
from video_files import numbered_clip, textured_clip, write_video

from vqa.io.video import VideoError, read_frames
from vqa.sampling.sama_video import SamaSampling, read_sama_clips

MEAN = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1, 1)
DEVIATION = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1, 1)
TEMPORAL = np.load(Path(__file__).parents[1] / "data" / "frame_sampling.npz")


def tiny(**numbers):
    return SamaSampling(**{"frames": 4, "interval": 2, "grid": 2, "patch": 16, **numbers})


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("clips", "length"), [(1, 20), (1, 65), (1, 96), (4, 300)])
def test_testing_takes_the_published_frames_through_the_published_order(clips, length, tmp_path):
    path = write_video(tmp_path / "video.mp4", textured_clip(length, 48, 64))
    numbers = TEMPORAL[f"sama_test/n{clips}_T{length}"].clip(max=length - 1).tolist()
    frames = read_frames(path, numbers).unflatten(1, (clips, 32)).transpose(0, 1)
    sampling = SamaSampling(clips=clips, grid=2, patch=16)

    read = read_sama_clips(path, sampling)

    assert_allclose(read, (scale_and_mask(frames, sampling) - MEAN) / DEVIATION, atol=1e-5)


def test_training_is_a_matter_of_the_generator(tmp_path):
    path = write_video(tmp_path / "video.mp4", textured_clip(30))
    state = torch.get_rng_state()

    first, again, other = (read_sama_clips(path, tiny(), generator(seed)) for seed in (1, 1, 2))

    assert first.equal(again)
    assert not first.equal(other)
    assert torch.get_rng_state().equal(state)


def test_a_video_that_is_too_short_ends_with_its_last_frame_repeated(tmp_path):
    path = write_video(tmp_path / "video.mp4", numbered_clip(5))

    clip = read_sama_clips(path, tiny())[0] * DEVIATION + MEAN

    assert clip.shape == (3, 4, 32, 32)
    assert_allclose(clip.mean(dim=(0, 2, 3)), [20, 80, 140, 140], atol=4)


def test_a_damaged_video_is_an_error_naming_it(tmp_path):
    path = tmp_path / "damaged.mp4"
    path.write_bytes(b"no video")

    with pytest.raises(VideoError, match=r"damaged\.mp4"):
        read_sama_clips(path, tiny())
