"""What SimpleVQA reads from a video before training: key frames, and motion features of chunks.

As published: a key frame every second, its short side resized to 520 pixels (bilinear without
antialiasing), and for every second the 32 consecutive frames from there on, resized to 224 x 224
(bilinear with antialiasing), through a frozen SlowFast. Seconds are counted in frames where the
frame rate is constant, as published, and taken from the frames' times where it is not. Resizing is
torchvision's, which rounds to whole grey levels; OpenCV, with which the published pipeline resizes
key frames, computes with 11-bit weights and may differ by a level.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional  # type: ignore[import-untyped]

from vqa.io.video import Video
from vqa.models import load_published
from vqa.models.slowfast import FRAMES, SIZE, SlowFastR50

MotionKind = Literal["slowfast_r50", "frame_differences"]

FRAME_DIFFERENCES = 15
"""Length of the features of that kind."""


def build_extractor(
    kind: MotionKind, weights: Path | None = None, device: torch.device | None = None
) -> MotionExtractor:
    """`slowfast_r50` must have published weights, no other kind may; by default on the CPU."""
    if (weights is None) == (kind == "slowfast_r50"):
        expected = "a file of the published network" if weights is None else "none"
        raise ValueError(f"slowfast_weights: expected {expected} for {kind}, got {weights}")
    if weights is None:
        return FrameDifferences()
    network = SlowFastR50()
    load_published(network, weights)
    return SlowFastFeatures(network, device or torch.device("cpu"))


class SlowFastFeatures:
    """2304 features of 32 frames: 2048 of the slow pathway, then 256 of the fast one."""

    size = SIZE

    def __init__(self, network: SlowFastR50, device: torch.device) -> None:
        self.fingerprint = f"slowfast_r50 {_digest(network)}"
        self._network, self._device = network.to(device), device

    def __call__(self, clip: Tensor) -> Tensor:
        pixels = (clip.to(self._device).float() / 255 - 0.45) / 0.225
        features: Tensor = self._network(pixels.transpose(0, 1)[None])
        return features[0].cpu()


class FrameDifferences:
    """Fifteen statistics of how much a clip's luma changes; no network, nothing learned.

    Over pairs of frames 1, 2 and 4 apart, in grey levels: the mean absolute difference, its
    deviation from pair to pair, the share of pairs that are equal, the mean change of brightness
    and its deviation. All but the share as sign(x) log(1 + |x|), which keeps them within a few
    units. They see freezing, stutter, fades and the speed of motion, nothing finer.
    """

    size = 64
    fingerprint = "frame_differences 1"  # to be raised when the same clip would give other features
    _LAGS = (1, 2, 4)

    def __call__(self, clip: Tensor) -> Tensor:
        if len(clip) < max(self._LAGS) + 2:  # two pairs have a deviation
            raise ValueError(f"clip: expected at least 6 frames, got {len(clip)}")
        red, green, blue = clip.float().unbind(1)
        luma = 0.299 * red + 0.587 * green + 0.114 * blue
        return torch.cat([self._statistics(luma, lag) for lag in self._LAGS])

    @staticmethod
    def _statistics(luma: Tensor, lag: int) -> Tensor:
        change = luma[lag:] - luma[:-lag]
        size = change.abs().mean(dim=(1, 2))
        brightness = change.mean(dim=(1, 2))
        levels = torch.stack([size.mean(), size.std(), brightness.mean(), brightness.std()])
        still = (size < 0.1).float().mean()  # a repeated frame, up to what the encoder added
        return torch.cat([levels.sign() * levels.abs().log1p(), still[None]])


# What turns a clip, uint8 [T, 3, size, size], into motion features, float32 [M]. Those that give
# other features, weights included, have another fingerprint.
MotionExtractor = SlowFastFeatures | FrameDifferences


def _digest(network: torch.nn.Module) -> str:
    """Of weights and statistics, whatever file they came in."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


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


class ChosenFrames(NamedTuple):
    """Numbers of distinct key frames and chunks; whoever takes more repeats the last of each."""

    key_frames: tuple[int, ...]
    chunks: tuple[tuple[int, ...], ...]


def plan(
    frames: int,
    frame_rate: float,
    settings: FeatureSettings,
    times: NDArray[np.float64] | None = None,
) -> ChosenFrames:
    """Which of so many frames are read, with so many per second on average (0 if unknown).

    With a constant frame rate, key frame k is frame k * step and chunk k begins there, with
    step = frame rate / `per_second`, rounded half to even. There are as many chunks as whole steps,
    at least one; a chunk that reaches beyond the end repeats the last frame. A video of unknown
    frame rate gives frame 0 and the chunk that begins there, as in the published code's chunks; its
    key frames would fail.

    Where the `times`, seconds from the first frame to every frame, are not evenly spaced, key frame
    k is what is shown k / `per_second` seconds after the beginning; a frame that is shown for
    longer counts once.
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


class Features(NamedTuple):
    """What a video gave: distinct key frames uint8 [K, 3, H, W], motion float32 [C, M]."""

    key_frames: Tensor
    motion: Tensor


def extract(path: Path, settings: FeatureSettings, motion: MotionExtractor) -> Features:
    """Key frames and motion features of one video, decoded once."""
    key_frames, chunks = read_chunks(path, settings, motion.size)
    return Features(key_frames, torch.stack([motion(chunk) for chunk in chunks]))


def read_chunks(
    path: Path, settings: FeatureSettings, size: int
) -> tuple[Tensor, Iterator[Tensor]]:
    """Distinct key frames, uint8 [K, 3, H, W], and one after the other the chunks of a video.

    Chunks, of which motion features are made, are uint8 [chunk, 3, size, size].
    """
    with Video.open(path) as video:
        info = video.info()
        key_frames, chunks = plan(info.frames, info.frame_rate, settings, video.times)
        in_chunks = {number for chunk in chunks for number in chunk}
        large: dict[int, Tensor] = {}
        small: dict[int, Tensor] = {}
        for number, pixels in video.decode(in_chunks.union(key_frames), "rgb24"):
            # A copy, as turned frames are views with negative strides, which torch lacks.
            frame = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
            if number in key_frames:
                large[number] = functional.resize(frame, [settings.short_side], antialias=False)
            if number in in_chunks:
                small[number] = functional.resize(frame, [size, size], antialias=True)
    clips = (torch.stack([small[number] for number in chunk]) for chunk in chunks)
    return torch.stack([large[number] for number in key_frames]), clips
