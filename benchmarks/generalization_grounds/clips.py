"""A labelled set of short videos in memory, checked on loading, and fragments of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vqa.datasets.tables import DatasetError, read_list
from vqa.io.video import VideoError, read_frames
from vqa.models.quality_planes import PLANES, quality_planes
from vqa.sampling.fragments import Offsets, cell_starts
from vqa.sampling.tiny_fast_vqa import FragmentSampling, draw_views


@dataclass(frozen=True)
class LumaClips:
    """Decoded videos: luma uint8 [N, T, H, W] and opinion scores float32 [N]."""

    luma: Tensor
    scores: Tensor


@dataclass(frozen=True)
class PlaneClips:
    """What the model sees: planes float16 [N, C, T, H, W] and opinion scores float32 [N]."""

    planes: Tensor
    scores: Tensor


def load_clips(label_list: Path) -> LumaClips:
    """Decode every video of a four-column label list completely, so that bad input shows now.

    Raises:
        DatasetError: the list cannot be used (see `read_list`), or a video is damaged,
            truncated or of another size or length than the first. Names list, row and video.
    """
    table = read_list(label_list)
    clips: list[Tensor] = []
    for row, (name, *_) in table.rows.items():
        try:
            luma = read_frames(label_list.parent / name, pixels="gray")[0]
        except VideoError as error:
            raise DatasetError(f"{label_list}, row {row}: {error}") from error
        if clips and luma.shape != clips[0].shape:
            raise DatasetError(
                f"{label_list}, row {row}: expected [frames, height, width]"
                f" {list(clips[0].shape)} as in row 1, {name} has {list(luma.shape)}"
            )
        clips.append(luma)
    scores = [float(cells[-1]) for cells in table.rows.values()]
    return LumaClips(torch.stack(clips), torch.tensor(scores))


def to_planes(clips: LumaClips) -> PlaneClips:
    """Quality planes of whole frames, computed once; half precision halves the memory."""
    videos, *size = clips.luma.shape
    planes = torch.empty(videos, PLANES, *size, dtype=torch.float16)
    for video, luma in zip(planes, clips.luma, strict=True):
        video.copy_(quality_planes(luma))
    return PlaneClips(planes, clips.scores)


def sample_fragments(
    clips: PlaneClips,
    which: Tensor,
    sampling: FragmentSampling,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fragments of some clips.

    Args:
        clips: the clips.
        which: their numbers, int64 [B].
        sampling: how fragments are cut.
        generator: draws start frame and patch positions; with `None` both are in the middle.

    Returns:
        float32 [B, C, frames, grid * patch, grid * patch].
    """
    length, height, width = clips.planes.shape[2:]
    indices, offsets = draw_views(len(which), length, (height, width), sampling, generator)
    frames = clips.planes[which[:, None], :, indices].transpose(1, 2)
    return cut_fragments(frames, offsets, sampling.patch).float()


def cut_fragments(frames: Tensor, offsets: Offsets, patch: int) -> Tensor:
    """Fragments [B, C, T, rows * patch, columns * patch] of whole frames [B, C, T, H, W]."""
    clips, planes, time, height, width = frames.shape
    _, rows, columns, _ = offsets[0].shape
    top = cell_starts(height, rows, patch)[:, None, None] + offsets[0]
    left = cell_starts(width, columns, patch)[:, None] + offsets[1]
    # Pixel numbers in a frame, [B, rows, patch rows, columns, patch columns].
    y = top[:, :, None] + torch.arange(patch)[:, None, None]
    x = left[:, :, None] + torch.arange(patch)
    places = (y * width + x).reshape(clips, 1, 1, -1)
    cut = frames.reshape(clips, planes, time, -1).gather(-1, places.expand(-1, planes, time, -1))
    return cut.reshape(clips, planes, time, rows * patch, columns * patch)


def fixed_views(clips: PlaneClips, sampling: FragmentSampling, views: int, seed: int) -> Tensor:
    """The same `views` random fragment samplings of every clip each time: [V, N, C, T, h, w]."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.arange(len(clips.scores))
    return torch.stack([sample_fragments(clips, which, sampling, generator) for _ in range(views)])


def shuffled_batches(clips: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of clip numbers without end: each epoch a new order, a last partial one is dropped.

    Raises:
        ValueError: fewer clips than one batch needs.
    """
    if clips < batch:
        raise ValueError(f"batch: expected at most the {clips} clips there are, got {batch}")
    while True:
        order = torch.randperm(clips, generator=generator)
        yield from torch.split(order[: clips // batch * batch], batch)
