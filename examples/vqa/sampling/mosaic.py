"""The cell rule of SAMA (Liu et al. 2024): patches of a resized frame, without resizing the frame.

SAMA resizes a frame bilinearly, divides it into a grid of cells and cuts a patch from each. Only
the pixels of the patches are wanted, so here every output pixel gets its place in the original
frame, and only its four neighbours there are read. Scales are mixed by choosing between positions.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from vqa.sampling.fragments import Mosaic, Offsets, cell_starts, draw_offsets

SMALL_SQUARE = 4
"""Side of the squares of small patch masks: what the models embed as one token."""


class Positions(NamedTuple):
    """Where in a frame the pixels of a mosaic of N pixels are read, row by row."""

    corner: Tensor
    """Number of the upper left of the four neighbours, row by row, int64 [N]."""
    below: Tensor
    """Weight of the neighbours below, from 0 to 1, float32 [N]."""
    right: Tensor
    """Weight of the neighbours to the right, from 0 to 1, float32 [N]."""


def cell_offsets(
    mosaic: Mosaic,
    clips: int,
    generator: torch.Generator | None,
    pixels_of: tuple[int, int] | None = None,
) -> list[Offsets]:
    """Offsets [grid, grid] of each clip; drawn as published, all rows before all columns.

    They are shares of the slack from 0 to 1 (floating), for use at any scale, or with the height
    and width of frames whole pixels, as for plain fragments. Without a generator every patch is in
    the middle of its cell.
    """
    shape = (mosaic.grid, mosaic.grid, clips)
    if generator is None:
        rows = columns = torch.full(shape, 0.5)
    elif pixels_of is None:
        rows, columns = (torch.rand(shape, generator=generator) for _ in range(2))
    else:
        both = draw_offsets(mosaic, pixels_of, segments=clips, generator=generator)
        rows, columns = (offsets[0] for offsets in both)
    return [(rows[..., clip], columns[..., clip]) for clip in range(clips)]


def find_positions(
    size: tuple[int, int], resized: tuple[int, int], mosaic: Mosaic, offsets: Offsets
) -> Positions:
    """Positions in a frame of that size when it is first resized, to the mosaic's side or more.

    Cell `i` of `n` along a resized side of length `l` begins at `min(l // n * i, l - patch)`, and
    its patch lies `offset` pixels, or `int(offset * (l // n - patch))` for a share, further on.
    """
    (row, below), (column, right) = (
        _neighbours(length, goal, _pixels(goal, mosaic, offset, along))
        for length, goal, offset, along in zip(size, resized, offsets, (0, 1), strict=True)
    )
    # [cell row, pixel row, cell column, pixel column]
    shape = (mosaic.grid, mosaic.patch, mosaic.grid, mosaic.patch)
    row, below = (value.transpose(1, 2)[..., None] for value in (row, below))
    column, right = (value[:, None] for value in (column, right))
    return Positions(
        (row * size[1] + column).flatten(),
        below.expand(shape).flatten(),
        right.expand(shape).flatten(),
    )


def _pixels(length: int, mosaic: Mosaic, offsets: Tensor, along: int) -> Tensor:
    """Rows (along = 0) or columns (along = 1) of every patch, int64 [cells, cells, patch]."""
    starts = cell_starts(length, mosaic.grid, mosaic.patch)
    if offsets.is_floating_point():
        offsets = (offsets * (length // mosaic.grid - mosaic.patch)).long()
    starts = (starts[:, None] if along == 0 else starts) + offsets
    return starts[..., None] + torch.arange(mosaic.patch)


def _neighbours(length: int, resized: int, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The neighbour before each pixel of a resized side, and the weight of the one after it."""
    scale = torch.tensor(float(length)) / resized
    # In float32, as torch's own resizing, for equal rounding.
    position = ((pixels + 0.5) * scale - 0.5).clamp(0, length - 1)
    before = position.floor()
    return before.long(), position - before


def masked_positions(
    size: tuple[int, int],
    resized: tuple[tuple[int, int], tuple[int, int]],
    mosaic: Mosaic,
    offsets: Offsets,
    square: int | None,
) -> Positions:
    """Positions at two scales: the first on even squares of a checkerboard, the second elsewhere.

    The squares have `square` pixels of the mosaic a side; without squares there is the second only.
    """
    first, second = resized
    positions = find_positions(size, second, mosaic, offsets)
    if square is None or first == second:
        return positions
    number = torch.arange(mosaic.side) // square
    even = ((number[:, None] + number) % 2 == 0).flatten()  # the upper left one is
    others = find_positions(size, first, mosaic, offsets)
    return Positions(*(torch.where(even, a, b) for a, b in zip(others, positions, strict=True)))


def read_pixels(frames: Tensor, positions: Positions) -> Tensor:
    """Frames [..., H, W], finite, interpolated bilinearly at N positions: float32 [..., N].

    No copy is made of frames whose rows follow each other, with channels first or last in memory.
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
