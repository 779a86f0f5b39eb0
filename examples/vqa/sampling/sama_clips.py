"""From a video file to what SAMA takes: clips in which the scale changes from frame to frame."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vqa.sampling.fast_vqa import DEVIATION, MEAN, read_clip_frames
from vqa.sampling.frames import FrameSampling
from vqa.sampling.sama_video import SamaSampling, scale_and_mask


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
    frames = read_clip_frames(path, temporal, generator, threads)
    mean, deviation = (torch.tensor(value).view(3, 1, 1, 1) for value in (MEAN, DEVIATION))
    return scale_and_mask(frames, sampling, generator).sub_(mean).div_(deviation)
