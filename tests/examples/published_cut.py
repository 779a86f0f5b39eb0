"""Whole clips cut as published, of the pieces that the sampler uses frame by frame."""

import torch
from torch import Tensor

from vqa.sampling.fragments import cut_fragments
from vqa.sampling.published_fragments import draw_offsets_as_published, enlarge_as_published


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
