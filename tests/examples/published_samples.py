"""The conformance set's synthetic pixels, and its summaries of what samplers make of them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.testing import assert_allclose

from vqa.sampling.sama_video import FRAMES_PER_STEP, Mosaics, SamaSampling


def formula_video(frames: int, height: int, width: int) -> torch.Tensor:
    """uint8 [3, T, H, W]"""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    shift = 40 * torch.arange(3)[:, None] + 7 * torch.arange(frames)
    # Bytes wrap around at 256, as the formula does.
    return (3 * x + 5 * y + (x * y) // 97).byte() + shift[..., None, None].byte()


def block_means(sample: torch.Tensor, **blocks: int) -> np.ndarray:
    """Means over blocks along every dimension; a block of 0 takes the whole dimension."""
    sizes = [block or length for block, length in zip(blocks.values(), sample.shape, strict=True)]
    counts = [length // size for length, size in zip(sample.shape, sizes, strict=True)]
    split = sample.reshape([n for pair in zip(counts, sizes, strict=True) for n in pair])
    means = split.mean(dim=list(range(1, 2 * sample.ndim, 2)))
    return means.numpy()


def assert_published(sample: torch.Tensor, file: Mapping[str, Any], key: str, atol: float) -> None:
    """Compare a sampler's output, [C, T, S, S] or [C, S, S], with every summary of the file."""
    places = torch.randint(sample.numel(), (2000,), generator=torch.Generator().manual_seed(0))
    if sample.ndim == 4:
        means = {
            "patch32_block16_mean": block_means(sample, c=1, t=16, y=32, x=32),
            "patch32_pair_mean": block_means(sample, c=0, t=2, y=32, x=32)[0],
        }
    else:
        means = {"patch32_mean": block_means(sample, c=1, y=32, x=32)}
    assert list(sample.shape) == file[f"{key}/shape"].tolist()
    assert_allclose(sample.mean(), file[f"{key}/mean"], rtol=0, atol=atol)
    assert_allclose(sample.std(), file[f"{key}/std"], rtol=0, atol=atol)
    assert_allclose(sample.flatten()[:200], file[f"{key}/first200"], rtol=0, atol=atol)
    assert_allclose(sample.flatten()[places], file[f"{key}/sample2000"], rtol=0, atol=atol)
    for name, mean in means.items():
        assert_allclose(mean, file[f"{key}/{name}"], rtol=0, atol=atol)


def scale_and_mask(
    frames: torch.Tensor, sampling: SamaSampling, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Mosaics of any number of whole clips [clips, 3, T, H, W], two frames at a time."""
    sampling = replace(sampling, clips=len(frames), frames=frames.shape[2])
    mosaics = Mosaics(sampling, tuple(frames.shape[-2:]), generator)
    for clip, own in enumerate(frames):
        for step, pair in enumerate(torch.split(own, FRAMES_PER_STEP, dim=1)):
            mosaics.sample(clip, FRAMES_PER_STEP * step, pair)
    return mosaics.pixels
