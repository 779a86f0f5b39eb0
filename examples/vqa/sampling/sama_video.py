"""Scaling and masking of video (SAMA, Liu et al. 2024): fragments of every scale in one clip.

Along a clip the frames shrink step by step from full resolution to the size of the mosaic, and
each step gives its fragments, so that a clip of the usual size holds detail and overview.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vqa.io.video import Video
from vqa.sampling.fast_vqa import normalise, uses_of
from vqa.sampling.frames import ClipSampling, draw_frames
from vqa.sampling.mosaic import SMALL_SQUARE, Positions, cell_offsets, masked_positions, read_pixels

Variant = Literal["sama", "sama-c", "sama-mix", "sama-spm", "sama-swm", "fragments"]

FRAMES_PER_STEP = 2
"""Frames of equal scale: the model embeds them in pairs."""


@dataclass(frozen=True)
class SamaSampling(ClipSampling):
    """How clips are taken from a video and turned into mosaics of `grid` x `grid` patches.

    Scales go from 1 to the one that makes the short side as long as the mosaic, `1/r`:

    * `"sama"`: a ladder of equal steps over the clip, two frames a step;
    * `"sama-mix"`: a ladder of half as many steps, twice in a row;
    * `"sama-c"`: 1 and 1/r in turn;
    * `"sama-spm"`: 1 and the ladder on a checkerboard of 4 x 4 pixels (small patch masks);
    * `"sama-swm"`: the same on a checkerboard of patches (window masks);
    * `"fragments"`: 1 throughout.

    Published are 32 frames (16 steps) and four clips for testing. Any numbers do here: a clip of
    T frames takes ceil(T / 2) steps, and each clip has its ladder.
    """

    variant: Variant = "sama"


def read_sama_clips(
    path: Path, sampling: SamaSampling, generator: torch.Generator | None = None
) -> Tensor:
    """Mosaics of a video file, normalised, float32 [clips, 3, frames, S, S] with S = grid * patch.

    The generator draws frames and patch positions. As published, a clip lies in the middle of its
    segment of the video in testing (without a generator) and anywhere in it in training; a video
    that is too short ends with its last frame repeated.
    """
    mosaics: Mosaics | None = None
    with Video.open(path) as video:
        indices = draw_frames(video.frames, sampling, "sama", generator)
        frames = video.decode(indices.flatten().tolist(), "rgb24")
        for clip, time, frame in uses_of(frames, indices):
            size = (frame.shape[0], frame.shape[1])
            mosaics = mosaics or Mosaics(sampling, size, generator)
            pixels = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)
            mosaics.sample(clip, time, pixels[:, None])
    assert mosaics is not None, "a clip has at least one frame"
    return normalise(mosaics.pixels)


class Mosaics:
    """Mosaics of clips whose frames come one after the other, in any order.

    A video (`size` is height and width) smaller than the mosaic is first enlarged until its short
    side fits, and then keeps that size at every step. In testing (without a generator) every patch
    is cut from the middle of its cell; in training at a random place, the same share of the way
    through the cell at all scales.
    """

    def __init__(
        self, sampling: SamaSampling, size: tuple[int, int], generator: torch.Generator | None
    ) -> None:
        ratio = min(size) / sampling.side
        full = size if ratio >= 1 else (round(size[0] / ratio), round(size[1] / ratio))
        self._sampling, self._size, self._full = sampling, size, full
        self._plain = sampling.variant == "fragments"
        self._offsets = cell_offsets(
            sampling, sampling.clips, generator, full if self._plain else None
        )
        smallest = 1 / (min(full) / sampling.side)
        self._scales = ladder(sampling.variant, sampling.frames, smallest)
        self._positions: dict[int, tuple[float, Positions]] = {}
        shape = (sampling.clips, 3, sampling.frames, sampling.side, sampling.side)
        self.pixels = torch.empty(shape)
        """float32 [clips, 3, T, S, S] on 0..255; not rounded, except for uint8 frames enlarged for
        plain fragments, which published code cuts off."""

    def sample(self, clip: int, time: int, frames: Tensor) -> None:
        """Take what a clip's mosaics need of one of its frames, or of a step's, [C, T, H, W]."""
        scale = self._scales[time // FRAMES_PER_STEP]
        if self._positions.get(clip, (math.nan,))[0] != scale:  # the last ones, for frames in a row
            self._positions[clip] = (scale, self._find_positions(clip, scale))
        read = read_pixels(frames, self._positions[clip][1])
        if self._plain and frames.dtype == torch.uint8 and self._full != self._size:
            read.floor_()
        self.pixels[clip, :, time : time + frames.shape[1]].flatten(2).copy_(read)

    def _find_positions(self, clip: int, scale: float) -> Positions:
        """Positions of one step, masked where the variant says so."""
        mosaic, full = self._sampling, self._full
        resized = (round(full[0] * scale), round(full[1] * scale))
        squares = {"sama-spm": SMALL_SQUARE, "sama-swm": mosaic.patch}
        square = squares.get(mosaic.variant)
        return masked_positions(self._size, (full, resized), mosaic, self._offsets[clip], square)


def ladder(variant: Variant, frames: int, smallest: float) -> list[float]:
    """Scale of each pair of frames; the last of an odd number of frames has a step of its own."""
    steps = -(-frames // FRAMES_PER_STEP)
    if variant == "fragments":
        return [1.0] * steps
    length = {"sama-c": 2, "sama-mix": -(-steps // 2)}.get(variant, steps)
    scales: list[float] = np.linspace(1.0, smallest, length).tolist()
    return [scales[step % length] for step in range(steps)]
