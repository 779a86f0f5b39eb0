"""Spatial and temporal fragments (FAST-VQA, Wu et al. 2022), without a loop over patches.

*Spatial*: a frame is divided into a grid of cells and from each cell a small patch is cut at full
resolution; the patches side by side form a small frame. The patch positions stay the same over a
segment of consecutive frames (*aligned in time*), so that what changes between frames is motion,
not sampling. *Temporal*: a video is divided into segments and each gives one clip of frames.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate


def draw_offsets(
    clips: int,
    grid: tuple[int, int],
    slack: tuple[int, int],
    segments: int = 1,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw where in its cell each patch is cut: uniform over 0 .. slack-1.

    Args:
        clips: number of clips B.
        grid: number of cells (rows, columns).
        slack: positions to choose from (rows, columns), that is cell size minus patch size; 0
            where the patch fills the cell.
        segments: number of runs of frames S, each with positions of its own.
        generator: source of randomness.

    Returns:
        Row and column offsets, int64 [B, rows, columns, S] each.
    """
    shape = (clips, *grid, segments)
    rows, columns = (
        torch.randint(max(1, choices), shape, generator=generator) for choices in slack
    )
    return rows, columns


def centre_offsets(
    clips: int, grid: tuple[int, int], slack: tuple[int, int], segments: int = 1
) -> tuple[Tensor, Tensor]:
    """Offsets that cut every patch from the middle of its cell; as `draw_offsets`, for testing."""
    shape = (clips, *grid, segments)
    rows, columns = (torch.full(shape, max(0, choices) // 2) for choices in slack)
    return rows, columns


def cut_fragments(
    frames: Tensor,
    row_offsets: Tensor,
    column_offsets: Tensor,
    patch: tuple[int, int],
    laid_over: tuple[int, int] | None = None,
) -> Tensor:
    """Cut fragments from whole frames.

    Cell `i` of `n` along a side of length `L` begins at `min(L // n * i, L - patch)`.

    Args:
        frames: [B, C, T, H, W], any dtype.
        row_offsets: int64 [B, rows, columns, S], as `draw_offsets` gives; S divides T and
            frames `s * T / S` to `(s + 1) * T / S` share their positions.
        column_offsets: the same for columns.
        patch: patch size in pixels (rows, columns).
        laid_over: size (H, W) that the grid is laid over, where it is not that of `frames`.

    Returns:
        [B, C, T, rows * patch rows, columns * patch columns], the dtype of `frames`.

    Raises:
        ValueError: the frames are smaller than the grid of patches, or S does not divide T.
    """
    clips, planes, time, height, width = frames.shape
    _, grid_rows, grid_columns, segments = row_offsets.shape
    if height < grid_rows * patch[0] or width < grid_columns * patch[1]:
        raise ValueError(
            f"frames: expected at least {grid_rows * patch[0]} x {grid_columns * patch[1]} pixels"
            f" for the grid of patches, got {height} x {width}"
        )
    if time % segments:
        raise ValueError(
            f"row_offsets: expected segments that divide {time} frames, got {segments}"
        )
    cells = laid_over or (height, width)
    top = cell_starts(cells[0], grid_rows, patch[0])[:, None, None] + row_offsets
    left = cell_starts(cells[1], grid_columns, patch[1])[:, None] + column_offsets
    # Pixel numbers in a frame, [B, S, grid rows, patch rows, grid columns, patch columns].
    y = top.permute(0, 3, 1, 2)[:, :, :, None, :, None] + torch.arange(patch[0])[:, None, None]
    x = left.permute(0, 3, 1, 2)[:, :, :, None, :, None] + torch.arange(patch[1])
    places = (y * width + x).reshape(clips, 1, segments, 1, -1)
    each = time // segments
    pixels = frames.reshape(clips, planes, segments, each, height * width)
    cut = pixels.gather(-1, places.expand(-1, planes, -1, each, -1))
    return cut.reshape(clips, planes, time, grid_rows * patch[0], grid_columns * patch[1])


def cut_frame(
    frame: NDArray[np.uint8],
    row_offsets: Tensor,
    column_offsets: Tensor,
    patch: tuple[int, int],
    laid_over: tuple[int, int] | None = None,
) -> NDArray[np.uint8]:
    """Cut fragments from one decoded frame; as `cut_fragments`, faster.

    Whole rows of a patch are copied at once, which needs the channels last.

    Args:
        frame: uint8 [H, W, C].
        row_offsets: int64 [rows, columns].
        column_offsets: the same for columns.
        patch: patch size in pixels (rows, columns).
        laid_over: size (H, W) that the grid is laid over, where it is not the frame's own.

    Returns:
        uint8 [rows * patch rows, columns * patch columns, C].
    """
    height, width, channels = frame.shape
    rows, columns = row_offsets.shape
    cells = laid_over or (height, width)
    top = cell_starts(cells[0], rows, patch[0])[:, None] + row_offsets
    left = cell_starts(cells[1], columns, patch[1]) + column_offsets
    windows = sliding_window_view(
        frame.reshape(height, width * channels), (patch[0], patch[1] * channels)
    )
    cut: NDArray[np.uint8] = windows[top.numpy(), left.numpy() * channels]
    return cut.swapaxes(1, 2).reshape(rows * patch[0], columns * patch[1], channels)


def enlarge(frames: Tensor, least: tuple[int, int]) -> Tensor:
    """Frames that the grid of patches does not fit in, enlarged until it just does.

    Bilinear, proportions kept, rounded to the nearest integer if the frames hold integers.

    Args:
        frames: [C, T, H, W], any dtype.
        least: height and width that are needed.
    """
    height, width = frames.shape[-2:]
    size = enlarged_size((height, width), least)
    if size == (height, width):
        return frames
    enlarged = interpolate(frames.to(torch.float32), size=size, mode="bilinear")
    return (enlarged if frames.is_floating_point() else enlarged.round()).to(frames.dtype)


def enlarged_size(size: tuple[int, int], least: tuple[int, int]) -> tuple[int, int]:
    """Height and width of frames after `enlarge`."""
    scale = max(1.0, *(need / side for need, side in zip(least, size, strict=True)))
    if scale == 1:
        return size
    height, width = (max(need, round(scale * side)) for need, side in zip(least, size, strict=True))
    return height, width


def cell_starts(length: int, cells: int, patch: int) -> Tensor:
    """Where the cells along a side begin, so that a patch fits into each, int64 [cells]."""
    return (torch.arange(cells) * (length // cells)).clamp(max=length - patch)


def draw_clip_starts(
    video_frames: Tensor, clips: int, span: int, generator: torch.Generator | None = None
) -> Tensor:
    """Draw one start per clip from equal segments of each video.

    Args:
        video_frames: number of frames of each video, int64 [B].
        clips: clips N per video; segment `i` begins at `L * i` with `L = video_frames // N`.
        span: frames from the first to one past the last of a clip, that is length * interval.
        generator: source of randomness; with `None` every clip is in the middle of its segment.

    Returns:
        First frame of every clip, int64 [B, N].
    """
    segment = (video_frames // clips)[:, None]
    slack = (segment - span).clamp(min=0)
    if generator is None:
        within = (slack // 2).expand(-1, clips)
    else:
        # One uniform number per clip, as every video has a range of its own.
        uniform = torch.rand(len(video_frames), clips, generator=generator, dtype=torch.float64)
        within = (uniform * slack).long()
    return segment * torch.arange(clips) + within


def clip_frame_indices(starts: Tensor, video_frames: Tensor, length: int, interval: int) -> Tensor:
    """Frame numbers of clips; a video that is too short starts again from its first frame.

    Args:
        starts: first frame of every clip, int64 [B, N].
        video_frames: number of frames of each video, int64 [B].
        length: frames per clip T.
        interval: distance between a clip's frames.

    Returns:
        int64 [B, N, T].

    >>> clip_frame_indices(torch.tensor([[5]]), torch.tensor([8]), length=4, interval=2)
    tensor([[[5, 7, 1, 3]]])
    """
    indices = starts[:, :, None] + interval * torch.arange(length)
    return indices % video_frames[:, None, None]
