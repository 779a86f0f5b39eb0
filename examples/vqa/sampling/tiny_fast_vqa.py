"""What the tiny model sees of a video file: fragments of its quality planes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2.functional import rgb_to_grayscale  # type: ignore[import-untyped]

from vqa.io.video import Video, read_frames
from vqa.models.quality_planes import PLANES, RADIUS, inner_planes, quality_planes
from vqa.sampling.augmentation import Augmentation, draw_augmentation
from vqa.sampling.fragments import Offsets, corners, draw_offsets, enlarge, enlarged_size
from vqa.sampling.frames import ClipSampling, draw_clips

_TEST_SEED = 0
# Pixels in all frames of a video whose planes are kept in memory: three mebibytes.
_SMALL = 1 << 19


@dataclass(frozen=True)
class FragmentSampling(ClipSampling):
    """How fragments are cut from a clip."""

    grid: int = 3
    patch: int = 16
    frames: int = 4


def draw_views(
    clips: int,
    length: int,
    size: tuple[int, int],
    sampling: FragmentSampling,
    generator: torch.Generator | None,
) -> tuple[Tensor, Offsets]:
    """Frame numbers [B, frames] of clips of that length, and offsets of the patches."""
    indices = draw_clips(torch.full((clips,), length), sampling, generator)[:, 0]
    return indices, draw_offsets(sampling, size, clips, generator=generator)


def read_planes(
    path: Path,
    generator: torch.Generator | None,
    sampling: FragmentSampling,
    test_views: int,
    augmentation: Augmentation = "none",
) -> tuple[Tensor]:
    """Fragments of a video file's planes, float32 [views, C, frames, grid * patch, grid * patch].

    The generator draws one training view, of colour frames that are augmented before; without one
    there are the test views, the same each time and of every video of the same size. Fragments are
    those of the whole planes of all frames, but only what the patches need of each frame is kept
    and computed with. Frames that are too small for the grid are enlarged.
    """
    views, change = 1, None
    if generator is None:
        views, generator = test_views, torch.Generator().manual_seed(_TEST_SEED)
    elif augmentation != "none":
        change = draw_augmentation(augmentation, generator)
    if change is None and path.is_file():
        windows = _windows_of_small(path, path.stat().st_mtime_ns, sampling)
        if windows is not None:
            return (torch.cat([_view(windows, sampling, generator) for _ in range(views)]),)
    with Video.open(path) as video:
        info = video.info()
        patches = _Patches((info.frames, info.height, info.width), sampling, generator, views)
        for number, frame in video.decode(patches.uses, "gray" if change is None else "rgb24"):
            pixels = torch.from_numpy(np.ascontiguousarray(frame))
            if change is not None:
                pixels = rgb_to_grayscale(change(pixels.permute(2, 0, 1)[None]))[0, 0]
            patches.cut(number, pixels)
    return (patches.planes(),)


# Decoding costs more than all the rest of an epoch with a set like mini-UGC, which this holds.
@lru_cache(maxsize=320)
def _windows_of_small(
    path: Path, changed: int, sampling: FragmentSampling
) -> NDArray[np.float16] | None:
    """Every patch of the planes of whole frames, float16 [C, T, top, left, row, column].

    Of a file as of when it was last changed; None if it is long or large, or must be enlarged.
    """
    with Video.open(path) as video:
        info = video.info()
    size, patch = (info.height, info.width), sampling.patch
    if info.frames * math.prod(size) > _SMALL or min(size) < sampling.side:
        return None
    planes = quality_planes(read_frames(path, pixels="gray")[0]).half()
    return planes.unfold(2, patch, 1).unfold(3, patch, 1).numpy()


def _view(
    windows: NDArray[np.float16], sampling: FragmentSampling, generator: torch.Generator
) -> Tensor:
    planes, length, rows, columns, patch, _ = windows.shape
    size = (rows + patch - 1, columns + patch - 1)
    numbers, (top, left) = _draw_view(length, size, sampling, generator)
    # [C, frames, row of cells, column of cells, row, column]
    pieces = windows[:, numbers[:, None, None], top, left]
    mosaic = pieces.swapaxes(3, 4).reshape(1, planes, -1, sampling.side, sampling.side)
    return torch.from_numpy(mosaic).float()


class _Patches:
    """Pieces of a video [T, H, W] for some views that the generator draws."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        sampling: FragmentSampling,
        generator: torch.Generator,
        views: int,
    ) -> None:
        frames, height, width = shape
        grid, patch = sampling.grid, sampling.patch
        self._side = sampling.side
        size = enlarged_size((height, width), self._side)
        pieces = (views, sampling.frames, grid, grid)
        self._luma = np.empty((*pieces, patch + 2 * RADIUS, patch + 2 * RADIUS), np.uint8)
        self._change = np.zeros((*pieces, patch, patch), np.int16)
        self._corners = []
        self.uses: dict[int, list[tuple[int, int, int]]] = {}
        """By frame number: view, place in time, and 0 for the frame itself, 1 and -1 where it is
        the later or earlier one of a change."""
        for view in range(views):
            numbers, places = _draw_view(frames, size, sampling, generator)
            self._corners.append(places)
            for time, number in enumerate(numbers.tolist()):
                later = min(max(number, 1), frames - 1)
                for used, sign in ((number, 0), (later, 1), (max(later - 1, 0), -1)):
                    self.uses.setdefault(used, []).append((view, time, sign))

    def cut(self, number: int, luma: Tensor) -> None:
        """Keep what is needed of a frame [H, W]."""
        large = enlarge(luma[None, None], self._side)[0, 0]
        surrounded = np.pad(large.numpy(), RADIUS, mode="reflect")
        side = self._luma.shape[-1]
        windows = sliding_window_view(surrounded, (side, side))
        inner = slice(RADIUS, -RADIUS)
        for view, time, sign in self.uses[number]:
            pieces = windows[self._corners[view]]
            if sign == 0:
                self._luma[view, time] = pieces
            else:
                self._change[view, time] += sign * pieces[..., inner, inner].astype(np.int16)

    def planes(self) -> Tensor:
        """Mosaics of the planes, float32 [views, C, frames, grid * patch, grid * patch]."""
        luma, change = (torch.from_numpy(pieces) for pieces in (self._luma, self._change))
        # Half precision, as the planes of whole frames are kept.
        inner = inner_planes(luma.flatten(0, 3), change.flatten(0, 3)).half()
        # [C, views, frames, row of cells, column of cells, row, column]
        pieces = inner.reshape(PLANES, *change.shape)
        mosaics = pieces.transpose(4, 5).flatten(5, 6).flatten(3, 4)
        return mosaics.transpose(0, 1).float()


def _draw_view(
    length: int, size: tuple[int, int], sampling: FragmentSampling, generator: torch.Generator
) -> tuple[NDArray[np.int64], tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Frame numbers; and top and left of every patch, [row of cells, column of cells] each."""
    numbers, offsets = draw_views(1, length, size, sampling, generator)
    rows, columns = (offset[0, :, :, 0] for offset in offsets)
    return numbers[0].numpy(), corners(size, (rows, columns), sampling.patch)
