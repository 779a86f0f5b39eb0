"""Scaling and masking of images (SAMA, Liu et al. 2024): two scales on one checkerboard."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional  # type: ignore[import-untyped]

from vqa.io.files import shown
from vqa.models.imagenet import normalise
from vqa.sampling.fragments import Mosaic
from vqa.sampling.mosaic import SMALL_SQUARE, cell_offsets, masked_positions, read_pixels

ImageVariant = Literal["sama", "sama-spm", "fragments"]

_LARGEST_ANGLE = 45.0
# Of an enlarged image: a narrow strip would fill the memory.
_MOST_PIXELS = 1 << 26


class ImageError(ValueError):
    """An image file is missing, damaged or of a kind that has no 8-bit colours."""


@dataclass(frozen=True)
class SamaImageSampling(Mosaic):
    """How an image becomes a mosaic.

    * `"sama"`: full resolution and the size at which the short side is as long as the mosaic, in
      turn on a checkerboard of patches (window masks);
    * `"sama-spm"`: the same on a checkerboard of 4 x 4 pixels (small patch masks);
    * `"fragments"`: full resolution throughout.
    """

    grid: int = 8
    patch: int = 32
    variant: ImageVariant = "sama"


def read_sama_image(
    path: Path, sampling: SamaImageSampling, generator: torch.Generator | None = None
) -> Tensor:
    """An image file as the model takes it, normalised, float32 [3, S, S] with S = grid * patch.

    Any format that Pillow reads. Grey becomes colour, transparency is dropped, of several pictures
    the first counts. As in published code, pixels are taken as stored: an EXIF orientation is
    ignored. An image smaller than the mosaic is enlarged. In training, which draws from the
    generator, it is mirrored half of the time, then rotated by up to 45 degrees with black corners,
    and the patches are cut at random positions.
    """
    pixels = load_pixels(path, sampling.side)
    if generator is not None:
        # Drawn as by torchvision's RandomHorizontalFlip and RandomRotation, in this order.
        if torch.rand(1, generator=generator).item() < 0.5:
            pixels = pixels.flip(-1)
        angle = torch.empty(1).uniform_(-_LARGEST_ANGLE, _LARGEST_ANGLE, generator=generator).item()
        pixels = functional.rotate(pixels, angle)
    # Published code normalises first: the same, as the weights of the neighbours add up to one.
    return normalise(mask_scales(pixels, sampling, generator))


def mask_scales(
    image: Tensor, sampling: SamaImageSampling, generator: torch.Generator | None = None
) -> Tensor:
    """Mosaic of an image: [3, H, W], any dtype and range -> float32 [3, S, S] in that range.

    The generator draws where in their cells patches are cut, at the same share of the way at both
    scales; without one they are cut from the middle.
    """
    size = (image.shape[-2], image.shape[-1])
    if min(size) < sampling.side:
        raise ValueError(f"image: expected at least {sampling.side} pixels a side, got {size}")
    plain = sampling.variant == "fragments"
    (offsets,) = cell_offsets(sampling, 1, generator, size if plain else None)
    scale = 1 if plain else 1 / (min(size) / sampling.side)
    reduced = (round(size[0] * scale), round(size[1] * scale))
    square = SMALL_SQUARE if sampling.variant == "sama-spm" else sampling.patch
    positions = masked_positions(size, (size, reduced), sampling, offsets, square)
    return read_pixels(image, positions).view(-1, sampling.side, sampling.side)


def load_pixels(path: Path, smallest: int) -> Tensor:
    """Pixels of a file, uint8 [3, H, W], enlarged if a side has fewer than `smallest` pixels."""
    try:
        with warnings.catch_warnings():
            # Of 90 million pixels, which phones make; at twice as many Pillow refuses.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            colours = _colours(path, smallest)
    except ImageError:
        raise
    except Exception as error:  # each of Pillow's decoders has its own
        reason = str(error) or type(error).__name__
        raise ImageError(f"{shown(path)}: cannot be read as an image ({reason})") from error
    return torch.from_numpy(np.array(colours)).permute(2, 0, 1)


def _colours(path: Path, smallest: int) -> Image.Image:
    with Image.open(path) as image:
        if image.mode in ("I", "F") or image.mode.startswith("I;"):
            raise ImageError(
                f"{shown(path)}: expected 8 bits a channel, got Pillow's mode {image.mode};"
                " convert the file first"
            )
        short = min(image.size)
        width, height = (max(side, side * smallest // short) for side in image.size)
        if width * height > _MOST_PIXELS and short < smallest:
            raise ImageError(
                f"{shown(path)}: expected sides of about equal length, {image.width} x"
                f" {image.height} pixels would have to be enlarged to {width} x {height}"
            )
        # Pillow warns when it drops a palette's transparency in one step.
        opaque = image.convert("RGBA") if "transparency" in image.info else image
        colours = opaque.convert("RGB")
    if colours.size == (width, height):
        return colours
    return colours.resize((width, height), Image.Resampling.BILINEAR)
