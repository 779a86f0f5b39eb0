"""From a video file to what FAST-VQA takes: clips of fragments.

Which frames -> decode only them -> augmentation of whole frames -> fragments -> normalise.
Fragments are cut from each frame as it is decoded, so that whole frames are never held: for large
videos that takes as much time as decoding them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from vqa.io.video import Pixels, Video
from vqa.models import imagenet
from vqa.sampling.augmentation import Augmentation, draw_augmentation
from vqa.sampling.fragments import centre_offsets, cut_frame, draw_offsets, enlarge
from vqa.sampling.frames import FrameSampling, draw_frames
from vqa.sampling.published_fragments import draw_offsets_as_published, enlarge_as_published

Behaviour = Literal["fixed", "released"]

# Of red, green and blue, on values 0..255.
MEAN = tuple(255 * mean for mean in imagenet.MEAN)
DEVIATION = tuple(255 * deviation for deviation in imagenet.DEVIATION)


@dataclass(frozen=True)
class FastVqaSampling:
    """How FAST-VQA looks at a video: a `grid` x `grid` mosaic of patches from `frames` frames.

    Raises:
        ValueError: a number below 1, or an unknown behaviour or augmentation.
    """

    frames: int = 32
    """Frames per clip."""
    interval: int = 2
    """Distance between a clip's frames."""
    clips: int = 1
    grid: int = 7
    patch: int = 32
    """Pixels."""
    behaviour: Behaviour = "fixed"
    """`"fixed"`: the middle of everything in testing, and a grid that covers enlarged frames;
    `"released"`: as released, random in testing, too, with the grid of the original size."""
    augmentation: Augmentation = "none"
    """Of whole frames; applies wherever a generator is given, so leave it out for testing."""

    def __post_init__(self) -> None:
        """Refuse what cannot be sampled."""
        for name in ("frames", "interval", "clips", "grid", "patch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name, choices in (("behaviour", Behaviour), ("augmentation", Augmentation)):
            if getattr(self, name) not in get_args(choices):
                expected = ", ".join(get_args(choices))
                raise ValueError(f"{name}: expected one of {expected}, got {getattr(self, name)!r}")

    @property
    def temporal(self) -> FrameSampling:
        """Which frames the clips consist of."""
        rule: Literal["fixed", "fast_vqa"] = "fixed" if self.behaviour == "fixed" else "fast_vqa"
        return FrameSampling(self.frames, self.interval, self.clips, rule)


FAST_VQA = FastVqaSampling()
FAST_VQA_M = FastVqaSampling(frames=16, grid=4)


def read_clips(
    path: Path,
    sampling: FastVqaSampling,
    generator: torch.Generator | None = None,
    threads: int = 1,
) -> Tensor:
    """Clips of fragments of one video, ready for the model.

    Args:
        path: video file.
        sampling: how it is looked at.
        generator: draws frames, augmentation and patch positions; with `None` the clips are in
            the middle of their segments and the patches in the middle of their cells.
        threads: decoding threads.

    Returns:
        float32 [clips, 3, frames, grid * patch, grid * patch], normalised.

    Raises:
        VideoError: the file cannot be decoded; names it.
        ValueError: no generator where chance has a say: augmentation, the behaviour `"released"`.
    """
    _check_generator(sampling, generator)
    with Video.open(path, threads) as video:
        indices = draw_frames(video.frames, sampling.temporal, generator)
        frames = video.decode(indices.flatten().tolist(), "rgb24")
        uses: Iterable[tuple[int, int, Pixels]] = uses_of(frames, indices)
        if sampling.augmentation != "none" and generator is not None:
            uses = _augmented(uses, sampling.clips, sampling.augmentation, generator)
        return normalise(_cut(uses, sampling, generator))


def normalise(mosaics: Tensor) -> Tensor:
    """From uint8 [clips, T, H, W, 3] to float32 [clips, 3, T, H, W], (value - mean) / deviation."""
    clips = mosaics.permute(0, 4, 1, 2, 3).to(torch.float32, memory_format=torch.contiguous_format)
    mean, deviation = (torch.tensor(v).view(3, 1, 1, 1) for v in (MEAN, DEVIATION))
    return clips.sub_(mean).div_(deviation)


def _check_generator(sampling: FastVqaSampling, generator: torch.Generator | None) -> None:
    chance = [
        name
        for name, settled in (("behaviour", "fixed"), ("augmentation", "none"))
        if getattr(sampling, name) != settled
    ]
    if generator is None and chance:
        raise ValueError(
            f"generator: expected one, {chance[0]} {getattr(sampling, chance[0])!r} is random"
        )


def uses_of(
    frames: Iterable[tuple[int, Pixels]], indices: Tensor
) -> Iterator[tuple[int, int, Pixels]]:
    """Each decoded frame wherever it belongs: clip, place in the clip, pixels."""
    places: dict[int, list[tuple[int, int]]] = {}
    for clip, numbers in enumerate(indices.tolist()):
        for time, number in enumerate(numbers):
            places.setdefault(number, []).append((clip, time))
    for number, frame in frames:
        for clip, time in places[number]:
            yield clip, time, frame


def _augmented(
    uses: Iterable[tuple[int, int, Pixels]],
    clips: int,
    augmentation: Augmentation,
    generator: torch.Generator,
) -> Iterable[tuple[int, int, Pixels]]:
    """Frames augmented as they come, each clip by a draw of its own before any patch is drawn."""
    changes = [draw_augmentation(augmentation, generator) for _ in range(clips)]

    def changed(clip: int, frame: Pixels) -> Pixels:
        whole = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None]
        pixels: Pixels = changes[clip](whole)[0].permute(1, 2, 0).numpy()
        return pixels

    return ((clip, time, changed(clip, frame)) for clip, time, frame in uses)


def _cut(
    uses: Iterable[tuple[int, int, Pixels]],
    sampling: FastVqaSampling,
    generator: torch.Generator | None,
) -> Tensor:
    """Fragments of all clips, uint8 [clips, T, grid * patch, grid * patch, 3]."""
    side, patch = sampling.grid * sampling.patch, (sampling.patch, sampling.patch)
    mosaics = np.empty((sampling.clips, sampling.frames, side, side, 3), np.uint8)
    offsets: tuple[Tensor, Tensor] | None = None
    for clip, time, frame in uses:
        large = _enlarged(frame, sampling)
        # The published code forgets that it has enlarged the frames.
        height, width = large.shape[:2] if sampling.behaviour == "fixed" else frame.shape[:2]
        if offsets is None:
            cell = (height // sampling.grid, width // sampling.grid)
            offsets = _draw_offsets(cell, sampling, generator)
        rows, columns = (offset[0, :, :, clip] for offset in offsets)
        mosaics[clip, time] = cut_frame(large, rows, columns, patch, laid_over=(height, width))
    return torch.from_numpy(mosaics)


def _enlarged(frame: Pixels, sampling: FastVqaSampling) -> Pixels:
    side = sampling.grid * sampling.patch
    if min(frame.shape[:2]) >= side:
        return frame
    grow = enlarge if sampling.behaviour == "fixed" else enlarge_as_published
    planes = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[:, None]
    large: Pixels = grow(planes, (side, side))[:, 0].permute(1, 2, 0).numpy()
    return large


def _draw_offsets(
    cell: tuple[int, int], sampling: FastVqaSampling, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Offsets of the patches in their cells, [1, grid, grid, clips], for rows and columns."""
    grid = (sampling.grid, sampling.grid)
    slack = (cell[0] - sampling.patch, cell[1] - sampling.patch)
    if generator is None:
        return centre_offsets(1, grid, slack, sampling.clips)
    if sampling.behaviour == "released":
        return draw_offsets_as_published(grid, slack, sampling.clips, generator)
    return draw_offsets(1, grid, slack, sampling.clips, generator)
