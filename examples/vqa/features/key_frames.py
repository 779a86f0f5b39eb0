"""What SimpleVQA reads from a video before training: key frames, and motion features of chunks.

As published: a key frame every second, its short side resized to 520 pixels (bilinear without
antialiasing), and for every second the 32 consecutive frames from there on, resized to 224 x 224
(bilinear with antialiasing), through a frozen SlowFast. Seconds are counted in frames where the
frame rate is constant, as published, and taken from the frames' times where it is not. Resizing is
torchvision's, which rounds to whole grey levels; OpenCV, with which the published pipeline resizes
key frames, computes with 11-bit weights and may differ by a level.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional  # type: ignore[import-untyped]

from vqa.features.motion import MotionExtractor, MotionKind
from vqa.io.video import Video
from vqa.models.slowfast import FRAMES


@dataclass(frozen=True)
class FeatureSettings:
    """What is read from every video; the defaults are the published ones."""

    key_frames: int = 8
    """Key frames and chunks per video; 20 for YouTube-UGC."""
    per_second: int = 1
    """Key frames and chunks per second."""
    short_side: int = 520
    """Of key frames, in pixels."""
    chunk: int = FRAMES
    """Consecutive frames of a chunk."""
    motion: MotionKind = "slowfast_r50"

    def __post_init__(self) -> None:
        for name in ("key_frames", "per_second", "short_side", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.motion == "slowfast_r50" and self.chunk != FRAMES:
            raise ValueError(f"chunk: expected {FRAMES} for slowfast_r50, got {self.chunk}")


YOUTUBE_UGC = FeatureSettings(key_frames=20)
"""For its videos of twenty seconds."""

TINY = FeatureSettings(
    key_frames=4, per_second=8, short_side=128, chunk=6, motion="frame_differences"
)
"""For the half-second clips of mini-UGC, in seconds on a CPU."""


@dataclass(frozen=True)
class ChosenFrames:
    """Frame numbers of the distinct key frames and chunks of a video.

    A video with fewer than asked for repeats the last of each.
    """

    key_frames: tuple[int, ...]
    chunks: tuple[tuple[int, ...], ...]

    @property
    def frames(self) -> set[int]:
        """All frames that are looked at."""
        return {*self.key_frames, *(number for chunk in self.chunks for number in chunk)}


@dataclass(frozen=True)
class Features:
    """What a video gave: distinct key frames uint8 [K, 3, H, W], motion float32 [C, M]."""

    key_frames: Tensor
    motion: Tensor


def plan(
    frames: int,
    frame_rate: float,
    settings: FeatureSettings,
    times: NDArray[np.float64] | None = None,
) -> ChosenFrames:
    """Which frames are read.

    With a constant frame rate, key frame k is frame k * step and chunk k begins there, with
    step = frame rate / `per_second`, rounded half to even. There are as many chunks as whole steps,
    at least one; a chunk that reaches beyond the end repeats the last frame. A video of unknown
    frame rate (0) gives frame 0 and the chunk that begins there, as in the published code's chunks;
    its key frames would fail.

    Where the frames are not evenly spaced, key frame k is what is shown k / `per_second` seconds
    after the beginning; a frame that is shown for longer counts once.

    Args:
        frames: how many there are.
        frame_rate: their mean number per second, 0 if unknown.
        settings: how many of them, and how far apart.
        times: seconds from the first frame to every frame; evenly spaced if not given.

    >>> plan(70, 29.97, FeatureSettings()).key_frames
    (0, 30, 60)
    >>> [(chunk[0], chunk[-1]) for chunk in plan(70, 29.97, FeatureSettings()).chunks]
    [(0, 31), (30, 61)]
    """
    step = round(frame_rate / settings.per_second)
    if times is not None and frame_rate and not (step and _evenly_spaced(times, frame_rate)):
        whole = max(1, int(frames / frame_rate * settings.per_second))
        starts = _shown_every(1 / settings.per_second, frames / frame_rate, times)
    else:
        whole = max(1, frames // step) if step else 1
        starts = list(range(0, frames, step)) if step else [0]
    starts = starts[: settings.key_frames]
    return ChosenFrames(
        key_frames=tuple(starts),
        chunks=tuple(
            tuple(min(number, frames - 1) for number in range(start, start + settings.chunk))
            for start in starts[:whole]
        ),
    )


def _evenly_spaced(times: NDArray[np.float64], frame_rate: float) -> bool:
    """Whether no frame is further than half a frame from where the mean rate has it."""
    expected = np.arange(len(times)) / frame_rate
    return bool(np.abs(times - expected).max() <= 0.5 / frame_rate)


def _shown_every(interval: float, duration: float, times: NDArray[np.float64]) -> list[int]:
    """Numbers of the frames that are shown at 0, `interval`, 2 * `interval` ... seconds."""
    # A thousandth is what containers round times to.
    moments = np.arange(0, duration, interval) + 1e-3
    return list(dict.fromkeys((np.searchsorted(times, moments, side="right") - 1).tolist()))


def extract(path: Path, settings: FeatureSettings, motion: MotionExtractor) -> Features:
    """Key frames and motion features of one video, decoded once.

    Raises:
        VideoError: as `read_chunks`.
    """
    key_frames, chunks = read_chunks(path, settings, motion.size)
    return Features(key_frames, torch.stack([motion(chunk) for chunk in chunks]))


def read_chunks(
    path: Path, settings: FeatureSettings, size: int
) -> tuple[Tensor, Iterator[Tensor]]:
    """Distinct key frames of one video, and the chunks that motion features are made of.

    Args:
        path: the video.
        settings: what is read.
        size: height and width of the chunks' frames, in pixels.

    Returns:
        uint8 [K, 3, H, W], and uint8 [chunk, 3, size, size] one after the other.

    Raises:
        VideoError: the file is missing, damaged or truncated, or its frames change size; names it.
    """
    with Video.open(path) as video:
        info = video.info()
        wanted = plan(info.frames, info.frame_rate, settings, video.times)
        seen = _Seen(settings.short_side, size, wanted)
        for number, pixels in video.decode(wanted.frames, "rgb24"):
            # A copy, as turned frames are views with negative strides, which torch lacks.
            seen.add(number, torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1))
    chunks = (_in_order(seen.small, chunk) for chunk in wanted.chunks)
    return _in_order(seen.large, wanted.key_frames), chunks


@dataclass
class _Seen:
    """Decoded frames, each kept only in the sizes that are needed."""

    short_side: int
    size: int
    wanted: ChosenFrames
    large: dict[int, Tensor] = field(default_factory=dict)
    small: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._in_chunks = {number for chunk in self.wanted.chunks for number in chunk}

    def add(self, number: int, frame: Tensor) -> None:
        """Keep a frame, uint8 [3, H, W]."""
        if number in self.wanted.key_frames:
            self.large[number] = functional.resize(frame, [self.short_side], antialias=False)
        if number in self._in_chunks:
            self.small[number] = functional.resize(frame, [self.size, self.size], antialias=True)


def _in_order(frames: dict[int, Tensor], numbers: Iterable[int]) -> Tensor:
    return torch.stack([frames[number] for number in numbers])
