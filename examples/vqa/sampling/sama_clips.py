"""From a video file to what SAMA takes: clips in which the scale changes from frame to frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vqa.io.video import Video
from vqa.sampling.fast_vqa import DEVIATION, MEAN, uses_of
from vqa.sampling.frames import FrameSampling, draw_frames
from vqa.sampling.sama_video import Mosaics, SamaSampling


def read_sama_clips(
    path: Path,
    sampling: SamaSampling,
    generator: torch.Generator | None = None,
    threads: int = 1,
) -> Tensor:
    """Clips of one video, ready for the model.

    As published, a clip lies in the middle of its segment of the video in testing and anywhere in
    it in training; a video that is too short ends with its last frame repeated.

    Args:
        path: video file.
        sampling: how it is looked at.
        generator: draws frames and patch positions; `None` for testing.
        threads: decoding threads.

    Returns:
        float32 [clips, 3, frames, S, S], normalised, with S = grid * patch.

    Raises:
        VideoError: the file cannot be decoded; names it.
    """
    temporal = FrameSampling(sampling.frames, sampling.interval, sampling.clips, "sama")
    mosaics: Mosaics | None = None
    with Video.open(path, threads) as video:
        indices = draw_frames(video.frames, temporal, generator)
        frames = video.decode(indices.flatten().tolist(), "rgb24")
        for clip, time, frame in uses_of(frames, indices):
            size = (frame.shape[0], frame.shape[1])
            shape = (sampling.clips, 3, sampling.frames)
            mosaics = mosaics or Mosaics(sampling, shape, size, generator)
            pixels = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)
            mosaics.sample(clip, time, pixels[:, None])
    assert mosaics is not None, "a clip has at least one frame"
    mean, deviation = (torch.tensor(value).view(3, 1, 1, 1) for value in (MEAN, DEVIATION))
    return mosaics.pixels.sub_(mean).div_(deviation)
