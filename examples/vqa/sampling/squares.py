"""Images in memory and the squares that a network sees of them: random ones, or the middle one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional  # type: ignore[import-untyped]

from vqa.sampling.sama_image import load_pixels


@dataclass(frozen=True)
class Images:
    """Labelled images: pixels uint8 [3, H, W] each, scores float32 [N]."""

    pixels: Sequence[Tensor]
    scores: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def some(self, which: Tensor) -> Images:
        """The images of these numbers, int64 [M]."""
        return Images([self.pixels[number] for number in which.tolist()], self.scores[which])

    def squares(self, which: Tensor, side: int, generator: torch.Generator | None = None) -> Tensor:
        """Squares float32 [M, 3, side, side], 0 to 1, of the images of these numbers.

        With a generator from random places and mirrored half of the time, otherwise the middle.
        """
        squares = [_square(self.pixels[number], side, generator) for number in which.tolist()]
        return torch.stack(squares) / 255


def load_images(files: Sequence[Path], scores: Sequence[float], size: int) -> Images:
    """Image files brought to a short side of `size` pixels; 0.2 MB of memory each at 256.

    Raises:
        ImageError: a file cannot be read as an image.
    """
    pixels = [functional.resize(load_pixels(file, size), [size], antialias=True) for file in files]
    return Images(pixels, torch.tensor(scores, dtype=torch.float32))


def _square(pixels: Tensor, side: int, generator: torch.Generator | None) -> Tensor:
    room = (pixels.shape[1] - side, pixels.shape[2] - side)
    if generator is None:
        top, left, mirrored = room[0] // 2, room[1] // 2, False
    else:
        drawn = torch.rand(3, generator=generator).tolist()
        top, left = (int(share * (r + 1)) for share, r in zip(drawn[:2], room, strict=True))
        mirrored = drawn[2] < 0.5
    square = pixels[:, top : top + side, left : left + side]
    return square.flip(-1) if mirrored else square
