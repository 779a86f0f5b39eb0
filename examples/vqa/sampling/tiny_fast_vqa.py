"""A labelled set of short videos in memory, checked on loading, and fragments of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import rgb_to_grayscale  # type: ignore[import-untyped]

from vqa.io.label_list import LabelListError, read_label_list
from vqa.io.video import VideoError, read_frames
from vqa.models.quality_planes import PLANES, quality_planes
from vqa.sampling.augmentation import Augmentation, augment
from vqa.sampling.fragments import (
    centre_offsets,
    clip_frame_indices,
    cut_fragments,
    draw_clip_starts,
    draw_offsets,
)

_TEST_SEED = 0


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


@dataclass(frozen=True)
class FragmentSampling:
    """How fragments are cut: a `grid` x `grid` mosaic of patches from `frames` frames."""

    grid: int = 3
    patch: int = 16
    frames: int = 4
    interval: int = 2


def load_clips(label_list: Path) -> LumaClips:
    """Decode every video of a four-column label list completely, so that bad input shows now.

    Raises:
        LabelListError: the list cannot be used (see `read_label_list`), or a video is damaged,
            truncated or of another size or length than the first. Names list, row and video.
    """
    videos = read_label_list(label_list)
    clips: list[Tensor] = []
    for row, video in enumerate(videos, start=1):
        try:
            luma = read_frames(label_list.parent / video.path, pixels="gray")[0]
        except VideoError as error:
            raise LabelListError(f"{label_list}, row {row}: {error}") from error
        if clips and luma.shape != clips[0].shape:
            raise LabelListError(
                f"{label_list}, row {row}: expected [frames, height, width]"
                f" {list(clips[0].shape)} as in row 1, {video.path} has {list(luma.shape)}"
            )
        clips.append(luma)
    return LumaClips(torch.stack(clips), torch.tensor([video.score for video in videos]))


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
    lengths = torch.full((len(which),), length)
    span = sampling.frames * sampling.interval
    starts = draw_clip_starts(lengths, 1, span, generator)
    indices = clip_frame_indices(starts, lengths, sampling.frames, sampling.interval)[:, 0]
    frames = clips.planes[which[:, None], :, indices].transpose(1, 2)
    grid = (sampling.grid, sampling.grid)
    slack = (height // sampling.grid - sampling.patch, width // sampling.grid - sampling.patch)
    offsets = (
        centre_offsets(len(which), grid, slack)
        if generator is None
        else draw_offsets(len(which), grid, slack, generator=generator)
    )
    return cut_fragments(frames, *offsets, (sampling.patch, sampling.patch)).float()


def read_planes(
    path: Path,
    generator: torch.Generator | None,
    sampling: FragmentSampling,
    test_views: int,
    augmentation: Augmentation = "none",
) -> tuple[Tensor]:
    """Fragments of one video file's quality planes.

    Args:
        path: the video.
        generator: draws one training view; with `None` the test views are drawn, the same ones
            each time and of every video of the same size.
        sampling: how fragments are cut.
        test_views: how many test views.
        augmentation: of the whole colour frames of a training view.

    Returns:
        float32 [1 or test_views, C, frames, grid * patch, grid * patch].

    Raises:
        VideoError: the file cannot be read; names it.
    """
    if generator is None:
        return (fixed_views(_planes_of_file(path), sampling, test_views, _TEST_SEED)[:, 0],)
    if augmentation == "none":
        clips = _planes_of_file(path)
    else:
        frames = augment(read_frames(path).transpose(0, 1), augmentation, generator)
        clips = _planes_of(rgb_to_grayscale(frames)[:, 0])
    return (sample_fragments(clips, torch.tensor([0]), sampling, generator),)


# A small data set stays in memory: its planes cost more than all the rest of an epoch.
@lru_cache(maxsize=256)
def _planes_of_file(path: Path) -> PlaneClips:
    return _planes_of(read_frames(path, pixels="gray")[0])


def _planes_of(luma: Tensor) -> PlaneClips:
    """Planes of one clip [T, H, W], with a score that nobody reads."""
    return to_planes(LumaClips(luma[None], torch.zeros(1)))


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
