"""Reading and writing video files through PyAV."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import av
import numpy as np
import torch
from av.container import InputContainer
from numpy.typing import NDArray
from torch import Tensor

Pixels = NDArray[np.uint8]
Codec = Literal["h264", "mpeg4"]


class VideoError(ValueError):
    """A video file is missing, unreadable or shorter than what was asked of it."""


def read_frames(
    path: Path, indices: Sequence[int] | None = None, pixels: Literal["rgb24", "gray"] = "rgb24"
) -> Tensor:
    """Frames of a video in the order asked for, uint8 [C, T, H, W].

    Only the wanted frames are converted and kept; decoding stops after the last of them.

    Args:
        path: video file.
        indices: frame numbers from 0 in presentation order, repetitions allowed; `None` for all.
        pixels: `"rgb24"` (C = 3) or `"gray"` (luma, C = 1).

    Raises:
        VideoError: the file is missing, damaged, has no such frame, or (all frames asked for) holds
            fewer than its header says; names the file.
        ValueError: a negative or no frame number.
    """
    if indices is not None and (len(indices) == 0 or min(indices) < 0):
        raise ValueError(f"indices: expected frame numbers from 0, got {list(indices)}")
    try:
        with av.open(path, "r") as container:
            announced = container.streams.video[0].frames if container.streams.video else 0
            kept = _convert(_frames(container), None if indices is None else set(indices), pixels)
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: cannot be decoded ({error.strerror})") from error
    order = list(range(max(announced, len(kept), 1))) if indices is None else list(indices)
    missing = sorted(set(order) - kept.keys())
    if missing:
        raise VideoError(
            f"{path}: frame {missing[0]} is missing, the file is truncated or too short"
        )
    frames = torch.from_numpy(np.stack([kept[index] for index in order]))
    return frames[None] if pixels == "gray" else frames.permute(3, 0, 1, 2)


def _frames(container: InputContainer) -> Iterator[av.VideoFrame]:
    if container.streams.video:
        # One decoding thread: callers run several processes, one per core.
        container.streams.video[0].thread_count = 1
        yield from container.decode(video=0)


def _convert(
    frames: Iterator[av.VideoFrame], wanted: set[int] | None, pixels: str
) -> dict[int, Pixels]:
    """The wanted frames (all if None) as arrays, by frame number."""
    kept: dict[int, Pixels] = {}
    for number, frame in enumerate(frames):
        if wanted is None or number in wanted:
            kept[number] = frame.to_ndarray(format=pixels).astype(np.uint8, copy=False)
        if wanted is not None and len(kept) == len(wanted):
            break
    return kept


def encode(clip: Pixels, codec: Codec, quantiser: int, frame_rate: int) -> bytes:
    """An .mp4 file of a clip; the same input, encoder build and options give the same bytes.

    Args:
        clip: uint8 RGB [T, H, W, 3], H and W even.
        codec: `"h264"` (x264, constant rate factor) or `"mpeg4"` (MPEG-4 part 2, constant
            quantiser).
        quantiser: rate factor 0..51 for H.264, quantiser 1..31 for MPEG-4; larger is worse.
        frame_rate: frames per second.
    """
    buffer = io.BytesIO()
    name, options = _encoder(codec, quantiser)
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(name, rate=frame_rate, options=options)
        if not isinstance(stream, av.VideoStream):
            raise TypeError(f"{name} is no video encoder")
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # Slices depend on the number of threads, and that on the machine.
        stream.thread_count = 1
        for pixels in clip:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def _encoder(codec: Codec, quantiser: int) -> tuple[str, dict[str, str]]:
    if codec == "h264":
        # With its macroblock tree x264 was seen to write other bytes from one call to the next.
        options = {"crf": str(quantiser), "preset": "veryfast", "x264-params": "mbtree=0"}
        return "libx264", options
    return "mpeg4", {"qmin": str(quantiser), "qmax": str(quantiser)}


def decode(file: bytes) -> Pixels:
    """All frames of an encoded file held in memory, uint8 RGB [T, H, W, 3]."""
    with av.open(io.BytesIO(file), "r") as container:
        return np.stack(list(_convert(_frames(container), None, "rgb24").values()))
