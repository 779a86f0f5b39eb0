"""Which frames of a video make its clips: the fixed way, and those of published programs.

All divide a video into as many equal segments as clips are wanted and take one clip of evenly
spaced frames from each. They differ in where in its segment a clip begins, and in what stands for
frames beyond the end. The published ways draw from numpy's legacy generator, as their programs do,
so that the same seed gives the same frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.random import RandomState
from numpy.typing import NDArray
from torch import Tensor

from vqa.sampling.fragments import clip_frame_indices, draw_clip_starts

Rule = Literal["fixed", "fast_vqa", "sama"]
Frames = NDArray[np.int64]


@dataclass(frozen=True)
class FrameSampling:
    """Which frames to take.

    * `"fixed"`: `draw_clip_starts` and `clip_frame_indices`; short videos start again;
    * `"fast_vqa"`: as FAST-VQA, random in testing, too; short videos start again;
    * `"sama"`: as SAMA; short videos end with their last frame repeated.

    Raises:
        ValueError: an unknown rule, or a number below 1.
    """

    frames: int = 32
    """Frames per clip."""
    interval: int = 2
    """Distance between a clip's frames."""
    clips: int = 1
    rule: Rule = "fixed"

    def __post_init__(self) -> None:
        """Refuse settings that name no frames."""
        if self.rule not in get_args(Rule):
            raise ValueError(
                f"rule: expected one of {', '.join(get_args(Rule))}, got {self.rule!r}"
            )
        for name in ("frames", "interval", "clips"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")

    @property
    def span(self) -> int:
        """Frames from the first to one past the last of a clip, its last interval included."""
        return self.frames * self.interval


def draw_frames(
    video_frames: int, sampling: FrameSampling, generator: torch.Generator | None
) -> Tensor:
    """Frame numbers of the clips of one video.

    Args:
        video_frames: number of frames of the video.
        sampling: which frames to take.
        generator: draws where clips begin; with `None` they are in the middle of their segments.

    Returns:
        int64 [clips, frames].

    Raises:
        ValueError: no generator for the rule `"fast_vqa"`, which is random in testing, too.

    >>> draw_frames(8, FrameSampling(frames=3, interval=2, clips=1), None)
    tensor([[1, 3, 5]])
    """
    if sampling.rule == "fixed":
        length = torch.tensor([video_frames])
        starts = draw_clip_starts(length, sampling.clips, sampling.span, generator)
        return clip_frame_indices(starts, length, sampling.frames, sampling.interval)[0]
    random = None
    if generator is not None:
        random = RandomState(int(torch.randint(2**31, (), generator=generator)))
    if sampling.rule == "sama":
        return torch.from_numpy(sama_frames(video_frames, sampling, random))
    if random is None:
        raise ValueError(
            "generator: expected one, FAST-VQA's published sampling is random in testing, too"
        )
    return torch.from_numpy(fast_vqa_frames(video_frames, sampling, random))


def fast_vqa_frames(video_frames: int, sampling: FrameSampling, random: RandomState) -> Frames:
    """Frame numbers as FAST-VQA's published code draws them, int64 [clips, frames].

    Segment `i` of length `L = video_frames // clips` gives the clip that begins at `L i + u`, `u`
    uniform over `0 .. L - span - 1`, or 0 if `L <= span`; numbers are taken modulo the length.
    """
    segment = video_frames // sampling.clips
    within = _draw(random, segment - sampling.span, sampling.clips)
    return _clips(segment * np.arange(sampling.clips) + within, sampling) % video_frames


def sama_frames(video_frames: int, sampling: FrameSampling, random: RandomState | None) -> Frames:
    """Frame numbers as SAMA's published code draws them, int64 [clips, frames].

    As `fast_vqa_frames`, but with `random=None` clips begin in the middle, at
    `L i + max(0, L - span) // 2`, and numbers beyond the end become the last one.
    """
    segment = video_frames // sampling.clips
    slack = segment - sampling.span
    within = max(0, slack) // 2 if random is None else _draw(random, slack, sampling.clips)
    clips = _clips(segment * np.arange(sampling.clips) + within, sampling)
    return np.minimum(clips, video_frames - 1)


def _draw(random: RandomState, slack: int, clips: int) -> NDArray[np.int64]:
    """One number below `slack` per clip, in one draw; zeros without a draw if there is none."""
    return random.randint(0, slack, clips) if slack > 0 else np.zeros(clips, np.int64)


def _clips(starts: NDArray[np.int64], sampling: FrameSampling) -> Frames:
    return starts[:, None].astype(np.int64) + sampling.interval * np.arange(sampling.frames)
