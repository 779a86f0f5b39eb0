"""Whole clips cut patch by patch, and as published: what is cut frame by frame has to agree."""

import numpy as np
import torch
from torch import Tensor

from vqa.sampling.fragments import Mosaic, draw_offsets, enlarge_as_published


def cut(
    frames: Tensor,
    rows: Tensor,
    columns: Tensor,
    patch: int,
    laid_over: tuple[int, int] | None = None,
) -> Tensor:
    """Fragments [B, C, T, rows * patch, columns * patch] of frames [B, C, T, H, W] by slicing.

    Offsets are int64 [B, rows, columns, S]; frames `s * T / S` to `(s + 1) * T / S` share theirs.
    The grid is laid over the frames, or over the size that is given.
    """
    clips, across, down, segments = rows.shape
    time, height, width = frames.shape[2:]
    height, width = laid_over or (height, width)
    mosaics = frames.new_empty(*frames.shape[:3], across * patch, down * patch)
    for b, i, j, t in np.ndindex(clips, across, down, time):
        segment = t * segments // time
        top = min(height // across * i, height - patch) + int(rows[b, i, j, segment])
        left = min(width // down * j, width - patch) + int(columns[b, i, j, segment])
        piece = frames[b, :, t, top : top + patch, left : left + patch]
        mosaics[b, :, t, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch] = piece
    return mosaics


def published_fragments(
    frames: Tensor, generator: torch.Generator, grid: int = 7, patch: int = 32, aligned: int = 32
) -> Tensor:
    """Fragments of a clip.

    Args:
        frames: [C, T, H, W], values 0..255, uint8 or floating point.
        generator: source of randomness.
        grid: cells per side.
        patch: patch size in pixels.
        aligned: frames that share their positions; divides T.

    Returns:
        [C, T, grid * patch, grid * patch], the dtype of `frames`.
    """
    size = tuple(frames.shape[-2:])
    segments = max(1, frames.shape[1] // aligned)
    offsets = draw_offsets(Mosaic(grid, patch), size, 1, segments, generator, as_published=True)
    large = enlarge_as_published(frames, grid * patch)
    return cut(large[None], *offsets, patch, laid_over=size)[0]
