"""Fragments exactly as FAST-VQA's published code cuts them, for reproducing its numbers.

Positions are random in testing, too. Frames that are too small are enlarged, but the grid stays
that of the original size: only the top left part is seen, and neighbouring cells overlap.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate


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
