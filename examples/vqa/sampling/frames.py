"""Which frames of a video make its clips: the fixed way, and those of published programs.

All divide a video into as many equal segments as clips are wanted and take one clip of evenly
spaced frames from each. The published ways draw from numpy's legacy generator, as their programs
do, so that the same seed gives the same frames.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from numpy.random import RandomState
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

    * `"fixed"`: as `draw_clips`; short videos start again;
    * `"fast_vqa"`: as FAST-VQA, random in testing, too; short videos start again;
    * `"sama"`: as SAMA; short videos end with their last frame repeated.

    Without a generator clips are in the middle of their segments.
    """
    if rule == "fixed":
        return draw_clips(torch.tensor([video_frames]), sampling, generator)[0]
    if generator is None and rule == "fast_vqa":
        raise ValueError(
            "generator: expected one, FAST-VQA's published sampling is random in testing, too"
        )
    random = None
    if generator is not None:
        random = RandomState(int(torch.randint(2**31, (), generator=generator)))
    return published_frames(video_frames, sampling, rule, random)


def draw_clips(
    video_frames: Tensor, sampling: ClipSampling, generator: torch.Generator | None = None
) -> Tensor:
    """Frame numbers int64 [B, clips, frames] for videos of these lengths, int64 [B].

    Segment `i` begins at `L * i` with `L = video_frames // clips`, and its clip anywhere in it, or
    in its middle without a generator. A video that is too short starts again from its first frame.
    """
    segment = (video_frames // sampling.clips)[:, None]
    slack = (segment - sampling.span).clamp(min=0)
    if generator is None:
        within = slack // 2
    else:
        # One uniform number per clip, as every video has a range of its own.
        shape = (len(video_frames), sampling.clips)
        within = (torch.rand(shape, generator=generator, dtype=torch.float64) * slack).long()
    starts = segment * torch.arange(sampling.clips) + within
    numbers = starts[:, :, None] + sampling.interval * torch.arange(sampling.frames)
    return numbers % video_frames[:, None, None]


def published_frames(
    video_frames: int, sampling: ClipSampling, rule: Rule, random: RandomState | None
) -> Tensor:
    """Frame numbers as published code draws them, int64 [clips, frames].

    Segment `i` of length `L = video_frames // clips` gives the clip that begins at `L i + u`, `u`
    uniform over `0 .. L - span - 1`, or 0 if `L <= span`; in SAMA's testing, without `random`, it
    is `max(0, L - span) // 2`. FAST-VQA takes numbers modulo the length, SAMA at most the last one.
    """
    segment = video_frames // sampling.clips
    slack = max(0, segment - sampling.span)
    within = torch.tensor(slack // 2 if random is None else 0)
    if random is not None and slack > 0:  # all clips in one draw
        within = torch.from_numpy(random.randint(0, slack, sampling.clips))
    starts = segment * torch.arange(sampling.clips) + within
    numbers = starts[:, None] + sampling.interval * torch.arange(sampling.frames)
    return numbers % video_frames if rule == "fast_vqa" else numbers.clamp(max=video_frames - 1)
