"""Which frames of a video make its clips: the fixed way, and those of published programs.

All divide a video into as many equal segments as clips are wanted and take one clip of evenly
spaced frames from each. The published ways draw from numpy's legacy generator, as their programs
do, so that the same seed gives the same frames.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.random import RandomState
from numpy.typing import NDArray
from torch import Tensor

from vqa.sampling.fragments import Mosaic

Rule = Literal["fixed", "fast_vqa", "sama"]


@dataclass(frozen=True)
class ClipSampling(Mosaic):
    """Clips of `frames` mosaics; their defaults are the published ones."""

    grid: int = 7
    patch: int = 32
    frames: int = 32
    """Frames per clip."""
    interval: int = 2
    """Distance between a clip's frames."""
    clips: int = 1

    @property
    def span(self) -> int:
        """Frames from the first to one past the last of a clip, its last interval included."""
        return self.frames * self.interval


def draw_frames(
    video_frames: int, sampling: ClipSampling, rule: Rule, generator: torch.Generator | None
) -> Tensor:
    """Frame numbers of the clips of one video, int64 [clips, frames].

    * `"fixed"`: `draw_clip_starts` and `clip_frame_indices`; short videos start again;
    * `"fast_vqa"`: as FAST-VQA, random in testing, too; short videos start again;
    * `"sama"`: as SAMA; short videos end with their last frame repeated.

    Without a generator clips are in the middle of their segments.
    """
    if rule == "fixed":
        length = torch.tensor([video_frames])
        starts = draw_clip_starts(length, sampling.clips, sampling.span, generator)
        return clip_frame_indices(starts, length, sampling.frames, sampling.interval)[0]
    if generator is None and rule == "fast_vqa":
        raise ValueError(
            "generator: expected one, FAST-VQA's published sampling is random in testing, too"
        )
    random = None
    if generator is not None:
        random = RandomState(int(torch.randint(2**31, (), generator=generator)))
    return torch.from_numpy(published_frames(video_frames, sampling, rule, random))


def draw_clip_starts(
    video_frames: Tensor, clips: int, span: int, generator: torch.Generator | None = None
) -> Tensor:
    """First frames int64 [B, N] of N clips per video, from lengths int64 [B] of the videos.

    Segment `i` begins at `L * i` with `L = video_frames // N`, and its clip anywhere in it, or in
    its middle without a generator.
    """
    segment = (video_frames // clips)[:, None]
    slack = (segment - span).clamp(min=0)
    if generator is None:
        within = (slack // 2).expand(-1, clips)
    else:
        # One uniform number per clip, as every video has a range of its own.
        uniform = torch.rand(len(video_frames), clips, generator=generator, dtype=torch.float64)
        within = (uniform * slack).long()
    return segment * torch.arange(clips) + within


def clip_frame_indices(starts: Tensor, video_frames: Tensor, length: int, interval: int) -> Tensor:
    """Frame numbers int64 [B, N, length] of clips that begin at `starts` [B, N].

    A video that is too short starts again from its first frame.

    >>> clip_frame_indices(torch.tensor([[5]]), torch.tensor([8]), length=4, interval=2)
    tensor([[[5, 7, 1, 3]]])
    """
    indices = starts[:, :, None] + interval * torch.arange(length)
    return indices % video_frames[:, None, None]


def published_frames(
    video_frames: int, sampling: ClipSampling, rule: Rule, random: RandomState | None
) -> NDArray[np.int64]:
    """Frame numbers as published code draws them, int64 [clips, frames].

    Segment `i` of length `L = video_frames // clips` gives the clip that begins at `L i + u`, `u`
    uniform over `0 .. L - span - 1`, or 0 if `L <= span`; in SAMA's testing, without `random`, it
    is `max(0, L - span) // 2`. FAST-VQA takes numbers modulo the length, SAMA at most the last one.
    """
    segment = video_frames // sampling.clips
    slack = max(0, segment - sampling.span)
    within: NDArray[Any] = np.full(sampling.clips, slack // 2 if random is None else 0, np.int64)
    if random is not None and slack > 0:  # all clips in one draw
        within = random.randint(0, slack, sampling.clips)
    starts: NDArray[np.int64] = (segment * np.arange(sampling.clips) + within).astype(np.int64)
    numbers: NDArray[np.int64] = starts[:, None] + sampling.interval * np.arange(sampling.frames)
    return numbers % video_frames if rule == "fast_vqa" else np.minimum(numbers, video_frames - 1)
