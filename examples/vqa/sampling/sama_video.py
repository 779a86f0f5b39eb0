"""Scaling and masking of video (SAMA, Liu et al. 2024): fragments of every scale in one clip.

Along a clip the frames shrink step by step from full resolution to the size of the mosaic, and
each step gives its fragments, so that a clip of the usual size holds detail and overview.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from vqa.sampling.mosaic import (
    SMALL_SQUARE,
    Grid,
    Positions,
    cell_offsets,
    find_positions,
    masked_positions,
    read_pixels,
)

Variant = Literal["sama", "sama-c", "sama-mix", "sama-spm", "sama-swm", "fragments"]

FRAMES_PER_STEP = 2
"""Frames of equal scale: the model embeds them in pairs."""


@dataclass(frozen=True)
class SamaSampling:
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

    Raises:
        ValueError: an unknown variant, or a number below 1.
    """

    variant: Variant = "sama"
    frames: int = 32
    interval: int = 2
    clips: int = 1
    grid: int = 7
    patch: int = 32

    def __post_init__(self) -> None:
        """Refuse what the published sampler quietly turns into something else."""
        if self.variant not in get_args(Variant):
            names = ", ".join(get_args(Variant))
            raise ValueError(f"variant: expected one of {names}, got {self.variant!r}")
        for name in ("frames", "interval", "clips", "grid", "patch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")

    @property
    def mosaic(self) -> Grid:
        """The mosaic that a frame becomes."""
        return Grid(self.grid, self.patch)


def scale_and_mask(
    frames: Tensor, sampling: SamaSampling, generator: torch.Generator | None = None
) -> Tensor:
    """Mosaics of clips.

    A video smaller than the mosaic is first enlarged until its short side fits, and then keeps
    that size at every step. In testing every patch is cut from the middle of its cell; in training
    at a random place, which is the same share of the way through the cell at all scales.

    Args:
        frames: uint8 or floating [clips, 3, T, H, W], 0..255, any number of clips and of frames;
            as fast with channels last in memory, as decoders give them.
        sampling: variant and mosaic.
        generator: draws the places of the patches; `None` for testing.

    Returns:
        float32 [clips, 3, T, S, S] on 0..255 with S = grid * patch; not rounded to integers,
        except for uint8 `frames` enlarged for plain fragments, which published code cuts off.

    Raises:
        ValueError: `frames` has not five dimensions.
    """
    if frames.ndim != 5:
        raise ValueError(f"frames: expected [clips, 3, T, H, W], got {list(frames.shape)}")
    size = (frames.shape[-2], frames.shape[-1])
    clips, channels, length = frames.shape[:3]
    mosaics = Mosaics(sampling, (clips, channels, length), size, generator)
    for clip, own in enumerate(frames):
        pairs = torch.split(own, FRAMES_PER_STEP, dim=1)
        for step, pair in enumerate(pairs):
            mosaics.sample(clip, FRAMES_PER_STEP * step, pair)
    return mosaics.pixels


class Mosaics:
    """Mosaics of clips whose frames come one after the other, in any order.

    Args:
        sampling: variant and mosaic.
        shape: number of clips, and of channels and frames of each.
        size: height and width of the frames.
        generator: draws the places of the patches; `None` for testing.
    """

    def __init__(
        self,
        sampling: SamaSampling,
        shape: tuple[int, int, int],
        size: tuple[int, int],
        generator: torch.Generator | None,
    ) -> None:
        self._sampling, self._size, self._full = sampling, size, _full_size(size, sampling)
        self._plain = sampling.variant == "fragments"
        self._offsets = cell_offsets(
            sampling.mosaic, shape[0], generator, self._full if self._plain else None
        )
        side = sampling.mosaic.side
        self._scales = ladder(sampling.variant, shape[2], 1 / (min(self._full) / side))
        self._positions: dict[int, tuple[float, Positions]] = {}
        self.pixels = torch.empty(*shape, side, side)
        """float32 [clips, channels, T, S, S] on 0..255, as `scale_and_mask` returns it."""

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
        grid, full, offsets = self._sampling.mosaic, self._full, self._offsets[clip]
        resized = (round(full[0] * scale), round(full[1] * scale))
        squares = {"sama-spm": SMALL_SQUARE, "sama-swm": grid.patch}
        if scale == 1 or self._sampling.variant not in squares:
            return find_positions(self._size, resized, grid, offsets)
        square = squares[self._sampling.variant]
        return masked_positions(self._size, (full, resized), grid, offsets, square)


def ladder(variant: Variant, frames: int, smallest: float) -> list[float]:
    """Scale of each pair of frames; the last of an odd number of frames has a step of its own.

    >>> ladder("sama", frames=6, smallest=0.5)
    [1.0, 0.75, 0.5]
    >>> ladder("sama-c", frames=6, smallest=0.5)
    [1.0, 0.5, 1.0]
    """
    steps = -(-frames // FRAMES_PER_STEP)
    if variant == "fragments":
        return [1.0] * steps
    length = {"sama-c": 2, "sama-mix": -(-steps // 2)}.get(variant, steps)
    scales: list[float] = np.linspace(1.0, smallest, length).tolist()
    return [scales[step % length] for step in range(steps)]


def _full_size(size: tuple[int, int], sampling: SamaSampling) -> tuple[int, int]:
    """Height and width at scale 1: those of the frames, enlarged if they are too small."""
    ratio = min(size) / sampling.mosaic.side
    return size if ratio >= 1 else (round(size[0] / ratio), round(size[1] / ratio))
