"""Spatial fragments (FAST-VQA, Wu et al. 2022), without a loop over patches.

A frame is divided into a grid of cells and from each cell a small patch is cut at full resolution;
the patches side by side form a small frame. The patch positions stay the same over a segment of
frames, so that what changes between frames is motion, not sampling.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args, get_type_hints

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

Offsets = tuple[Tensor, Tensor]
"""How far down and to the right in its cell each patch is cut: int64 [B, rows, columns, S] each,
for B clips of S segments."""


@dataclass(frozen=True)
class Mosaic:
    """A mosaic of `grid` x `grid` square patches of `patch` pixels a side."""

    grid: int
    patch: int

    def __post_init__(self) -> None:
        """Refuse numbers below 1, and what is none of the choices of a `Literal`."""
        for name, kind in get_type_hints(type(self)).items():
            value, choices = getattr(self, name), get_args(kind)
            if choices and value not in choices:
                raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
            if kind is int and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")

    @property
    def side(self) -> int:
        """Pixels along a side of the mosaic."""
        return self.grid * self.patch


def draw_offsets(
    mosaic: Mosaic,
    size: tuple[int, int],
    clips: int = 1,
    segments: int = 1,
    generator: torch.Generator | None = None,
    as_published: bool = False,
) -> Offsets:
    """Offsets on frames of that size, uniform over 0 .. slack - 1; 0 where a patch fills its cell.

    The slack is the cell's size minus the patch's. Without a generator every patch is in the middle
    of its cell. In the published code a side without slack draws nothing.
    """
    shape = (clips, mosaic.grid, mosaic.grid, segments)
    offsets = []
    for length in size:
        slack = max(0, length // mosaic.grid - mosaic.patch)
        if generator is None or (as_published and slack == 0):
            offsets.append(torch.full(shape, slack // 2))
        else:
            offsets.append(torch.randint(max(1, slack), shape, generator=generator))
    return offsets[0], offsets[1]


def cell_starts(length: int, cells: int, patch: int) -> Tensor:
    """Where the cells along a side begin, so that a patch fits into each, int64 [cells]."""
    return (torch.arange(cells) * (length // cells)).clamp(max=length - patch)


def corners(
    size: tuple[int, int], offsets: Offsets, patch: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Top and left of every patch on a frame of that size, from offsets [rows, columns]."""
    rows, columns = offsets
    top = cell_starts(size[0], len(rows), patch)[:, None] + rows
    left = cell_starts(size[1], rows.shape[1], patch) + columns
    return top.numpy(), left.numpy()


def cut_frame(
    frame: NDArray[np.uint8], offsets: Offsets, patch: int, laid_over: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """Fragments [rows * patch, columns * patch, C] of one frame [H, W, C].

    The grid is laid over the frame, or over the size that is given.
    """
    height, width, channels = frame.shape
    top, left = corners(laid_over or (height, width), offsets, patch)
    rows, columns = top.shape
    # With the channels last whole rows of a patch are copied at once.
    windows = sliding_window_view(
        frame.reshape(height, width * channels), (patch, patch * channels)
    )
    cut: NDArray[np.uint8] = windows[top, left * channels]
    return cut.swapaxes(1, 2).reshape(rows * patch, columns * patch, channels)


def enlarge(frames: Tensor, side: int) -> Tensor:
    """Frames [C, T, H, W] in which a mosaic of that side does not fit, enlarged until it just does.

    Bilinear, proportions kept, rounded to the nearest integer if the frames hold integers.
    """
    size = enlarged_size(frames.shape[-2:], side)
    if size == frames.shape[-2:]:
        return frames
    enlarged = interpolate(frames.to(torch.float32), size=size, mode="bilinear")
    return (enlarged if frames.is_floating_point() else enlarged.round()).to(frames.dtype)


def enlarged_size(size: Sequence[int], side: int) -> tuple[int, int]:
    """Height and width of frames after `enlarge`."""
    scale = max(1.0, side / min(size))
    height, width = (round(scale * length) for length in size)
    return height, width


def enlarge_as_published(frames: Tensor, side: int) -> Tensor:
    """As `enlarge`, with the published code's arithmetic: integers are cut off, not rounded."""
    ratio = min(frames.shape[-2:]) / side
    if ratio >= 1:
        return frames
    enlarged = interpolate(frames / 255.0, scale_factor=1 / ratio, mode="bilinear")
    return (enlarged * 255.0).to(frames.dtype)
