"""Fragments exactly as FAST-VQA's published code cuts them, for reproducing its numbers.

Positions are random in testing, too. Frames that are too small are enlarged, but the grid stays
that of the original size: only the top left part is seen, and neighbouring cells overlap.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from vqa.sampling.fragments import cut_fragments


def enlarge_as_published(frames: Tensor, least: tuple[int, int]) -> Tensor:
    """As `enlarge`, with the published code's arithmetic: integers are cut off, not rounded."""
    height, width = frames.shape[-2:]
    ratio = min(height / least[0], width / least[1])
    if ratio >= 1:
        return frames
    enlarged = interpolate(frames / 255.0, scale_factor=1 / ratio, mode="bilinear")
    return (enlarged * 255.0).to(frames.dtype)


def draw_offsets_as_published(
    grid: tuple[int, int], slack: tuple[int, int], segments: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """As `draw_offsets` for one clip, but a side without slack draws nothing."""
    shape = (1, *grid, segments)
    rows, columns = (
        torch.randint(choices, shape, generator=generator)
        if choices > 0
        else torch.zeros(shape, dtype=torch.int64)
        for choices in slack
    )
    return rows, columns


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
    height, width = frames.shape[-2:]
    slack = (height // grid - patch, width // grid - patch)
    segments = max(1, frames.shape[1] // aligned)
    offsets = draw_offsets_as_published((grid, grid), slack, segments, generator)
    large = enlarge_as_published(frames, (grid * patch, grid * patch))
    return cut_fragments(large[None], *offsets, (patch, patch), laid_over=(height, width))[0]
