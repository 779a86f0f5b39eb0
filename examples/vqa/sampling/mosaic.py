"""The cell rule of SAMA (Liu et al. 2024): patches of a resized frame, without resizing the frame.

SAMA resizes a frame bilinearly, divides it into a grid of cells and cuts a patch from each. Only
the pixels of the patches are wanted, so here every output pixel gets its place in the original
frame, and only its four neighbours there are read. Scales are mixed by choosing between positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

SMALL_SQUARE = 4
"""Side of the squares of small patch masks: what the models embed as one token."""


@dataclass(frozen=True)
class Grid:
    """A mosaic of `cells` x `cells` square patches of `patch` pixels a side."""

    cells: int
    patch: int

    @property
    def side(self) -> int:
        """Pixels along a side of the mosaic."""
        return self.cells * self.patch


class Positions(NamedTuple):
    """Where in a frame the pixels of a mosaic of N pixels are read."""

    corner: Tensor
    """Number of the upper left of the four neighbours, row by row, int64 [N]."""
    below: Tensor
    """Weight of the neighbours below, from 0 to 1, float32 [N]."""
    right: Tensor
    """Weight of the neighbours to the right, from 0 to 1, float32 [N]."""


class Offsets(NamedTuple):
    """How far into its cell each patch is cut."""

    rows: Tensor
    """[cells, cells]; a share of the slack from 0 to 1 (floating), or pixels (integer)."""
    columns: Tensor
    """The same for columns."""


def cell_offsets(
    grid: Grid,
    clips: int,
    generator: torch.Generator | None,
    pixels_of: tuple[int, int] | None = None,
) -> list[Offsets]:
    """Offsets of each clip; drawn as published, all rows before all columns.

    Args:
        grid: the mosaic.
        clips: number of clips.
        generator: draws the offsets; `None` cuts every patch from the middle of its cell.
        pixels_of: height and width of the frames to draw whole pixels, as plain fragments do;
            otherwise shares of the slack are drawn, uniform, for use at any scale.
    """
    shape = (grid.cells, grid.cells, clips)
    if generator is None:
        both = [torch.full(shape, 0.5) for _ in Offsets._fields]
    elif pixels_of is None:
        both = [torch.rand(shape, generator=generator) for _ in Offsets._fields]
    else:
        slacks = [max(1, length // grid.cells - grid.patch) for length in pixels_of]
        both = [torch.randint(slack, shape, generator=generator) for slack in slacks]
    return [Offsets(both[0][..., clip], both[1][..., clip]) for clip in range(clips)]


def find_positions(
    size: tuple[int, int], resized: tuple[int, int], grid: Grid, offsets: Offsets
) -> Positions:
    """Positions of the mosaic's pixels when the frame is resized first.

    Cell `i` of `n` along a resized side of length `l` begins at `min(l // n * i, l - patch)`, and
    its patch lies `offset` pixels, or `int(offset * (l // n - patch))` for a share, further on.

    Args:
        size: height and width of the frame.
        resized: height and width after resizing, each at least the mosaic's side.
        grid: the mosaic.
        offsets: where the patches are cut.

    Returns:
        Positions of `grid.side ** 2` pixels, row by row.
    """
    (row, below), (column, right) = (
        _neighbours(length, goal, _pixels(goal, grid, offset, along))
        for length, goal, offset, along in zip(size, resized, offsets, (0, 1), strict=True)
    )
    # [cell row, pixel row, cell column, pixel column]
    shape = (grid.cells, grid.patch, grid.cells, grid.patch)
    row, below = (value.transpose(1, 2)[..., None] for value in (row, below))
    column, right = (value[:, None] for value in (column, right))
    return Positions(
        (row * size[1] + column).flatten(),
        below.expand(shape).flatten(),
        right.expand(shape).flatten(),
    )


def _pixels(length: int, grid: Grid, offsets: Tensor, along: int) -> Tensor:
    """Rows (along = 0) or columns (along = 1) of every patch, int64 [cells, cells, patch]."""
    cell = length // grid.cells
    starts = (torch.arange(grid.cells) * cell).clamp(max=length - grid.patch)
    if offsets.is_floating_point():
        offsets = (offsets * (cell - grid.patch)).long()
    starts = (starts[:, None] if along == 0 else starts) + offsets
    return starts[..., None] + torch.arange(grid.patch)


def _neighbours(length: int, resized: int, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The neighbour before each pixel of a resized side, and the weight of the one after it."""
    scale = torch.tensor(float(length)) / resized
    # In float32, as torch's own resizing, for equal rounding.
    position = ((pixels + 0.5) * scale - 0.5).clamp(0, length - 1)
    before = position.floor()
    return before.long(), position - before


def checkerboard(side: int, square: int) -> Tensor:
    """Whether a pixel lies on an even square, the upper left one included; bool [side ** 2].

    >>> checkerboard(4, 2).view(4, 4).int().tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    """
    number = torch.arange(side) // square
    return ((number[:, None] + number) % 2 == 0).flatten()


def masked_positions(
    size: tuple[int, int],
    resized: tuple[tuple[int, int], tuple[int, int]],
    grid: Grid,
    offsets: Offsets,
    square: int,
) -> Positions:
    """Positions at two scales: the first on even squares of a checkerboard, the second elsewhere.

    Args:
        size: height and width of the frame.
        resized: height and width at either scale.
        grid: the mosaic.
        offsets: where the patches are cut, the same at both scales.
        square: side of the checkerboard's squares in pixels of the mosaic.
    """
    first, second = (find_positions(size, goal, grid, offsets) for goal in resized)
    mask = checkerboard(grid.side, square)
    return Positions(*(torch.where(mask, a, b) for a, b in zip(first, second, strict=True)))


def read_pixels(frames: Tensor, positions: Positions) -> Tensor:
    """Interpolate frames bilinearly at the positions.

    Args:
        frames: [..., H, W], any dtype, finite; no copy is made of frames whose rows follow each
            other, whether channels come first or last in memory.
        positions: N positions in a frame of that size.

    Returns:
        float32 [..., N].
    """
    width, last = frames.shape[-1], frames.shape[-2] * frames.shape[-1] - 1
    flat = frames.flatten(-2)

    def read(distance: int) -> Tensor:
        # A neighbour beyond an edge has no weight: any pixel may stand for it.
        index = (positions.corner + distance).clamp(max=last)
        return flat.gather(-1, index.expand(*flat.shape[:-1], -1)).float()

    if not (positions.below.any() or positions.right.any()):
        return read(0)
    above = torch.lerp(read(0), read(1), positions.right)
    return torch.lerp(
        above, torch.lerp(read(width), read(width + 1), positions.right), positions.below
    )
