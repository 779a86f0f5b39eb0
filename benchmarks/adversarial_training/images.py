"""Small grey images that packages ship, split into those to fit, to validate and to test."""

from __future__ import annotations

import gzip
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from torch import Tensor, nn

from vqa.io.files import shown

_SPLIT_SEED = 0
_DIGITS_TO_DRAW_FROM = 1000
_FASHION_TESTED = 1000


class Labelled(NamedTuple):
    """Images float32 [N, 1, H, W], 0 to 1, and labels int64 [N]."""

    images: Tensor
    labels: Tensor

    def some(self, which: Tensor) -> Labelled:
        """The images of these numbers, int64 [M]."""
        return Labelled(self.images[which], self.labels[which])


@dataclass(frozen=True)
class Split:
    """What one training sees, and what it does not."""

    fitted: Labelled
    validation: Labelled
    test: Labelled


@dataclass(frozen=True)
class Digits:
    """scikit-learn's 1,797 digits of 8 x 8 pixels, of which the last 797 are the test data."""

    fitted: int = 200
    validation: int = 300

    def split(self, seed: int) -> Split:
        """What this seed draws; the test data is the same for all."""
        drawn, test = self._parts
        return _drawn(drawn, test, self.fitted, self.validation, seed)

    @cached_property
    def _parts(self) -> tuple[Labelled, Labelled]:
        digits = load_digits()
        every = Labelled(
            torch.from_numpy(digits.images).float()[:, None] / 16,
            torch.from_numpy(digits.target).long(),
        )
        generator = torch.Generator().manual_seed(_SPLIT_SEED)
        order = torch.randperm(len(every.labels), generator=generator)
        return every.some(order[:_DIGITS_TO_DRAW_FROM]), every.some(order[_DIGITS_TO_DRAW_FROM:])


@dataclass(frozen=True)
class FashionMnist:
    """Fashion-MNIST's clothes (Xiao et al. 2017), brought to 14 x 14 pixels by means of four.

    Drawn from its 60,000 training images; the first 1,000 of its test images are the test data.
    """

    folder: Path
    """Of the four files `*-ubyte.gz`."""
    fitted: int = 300
    validation: int = 300

    def split(self, seed: int) -> Split:
        """What this seed draws; the test data is the same for all.

        Raises:
            OSError: a file is not there.
            ValueError: a file is not what its name says.
        """
        drawn, test = self._parts
        return _drawn(drawn, test, self.fitted, self.validation, seed)

    @cached_property
    def _parts(self) -> tuple[Labelled, Labelled]:
        train, test = (self._read(part) for part in ("train", "t10k"))
        return train, test.some(torch.arange(min(_FASHION_TESTED, len(test.labels))))

    def _read(self, part: str) -> Labelled:
        pixels = read_idx(self.folder / f"{part}-images-idx3-ubyte.gz", dimensions=3)
        labels = read_idx(self.folder / f"{part}-labels-idx1-ubyte.gz", dimensions=1)
        images = nn.functional.avg_pool2d(torch.from_numpy(pixels)[:, None] / 255, 2)
        return Labelled(images, torch.from_numpy(labels).long())


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array of bytes in a packed IDX file, the format of MNIST.

    Raises:
        ValueError: it does not hold so many dimensions of bytes, or fewer or more bytes than it
            says.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{shown(path)}: expected a gzip file: {error}") from error
    start = 4 * (dimensions + 1)
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) < start:
        raise ValueError(f"{shown(path)}: expected an IDX file of {dimensions} dimensions of bytes")
    shape = np.frombuffer(content[4:start], ">u4").tolist()
    if len(content) - start != math.prod(shape):
        raise ValueError(
            f"{shown(path)}: expected {math.prod(shape)} bytes for its shape {shape},"
            f" got {len(content) - start}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def _drawn(drawn: Labelled, test: Labelled, fitted: int, validation: int, seed: int) -> Split:
    order = torch.randperm(len(drawn.labels), generator=torch.Generator().manual_seed(seed))
    return Split(drawn.some(order[:fitted]), drawn.some(order[fitted : fitted + validation]), test)
