"""Reading video files through PyAV: exactly the wanted frames, with as little decoding as possible.

Frames are numbered from 0 in presentation order, whatever their times are. Two ways lead to them:

* *random access*: the packets are read once without decoding (`vqa.io.video_index`), which gives
  the number of every frame and costs milliseconds; decoding then begins at the key frame before the
  first wanted frame, leaves out frames that neither are wanted nor referred to, and goes on at a
  later key frame where that saves decoding;
* *counting*: all frames from the start are decoded and counted. It is what random access has to
  agree with, and is used for files whose packets do not tell (see `FrameIndex`), and wherever
  random access did not give a wanted frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, cast

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from torch import Tensor

from vqa.io.video_index import Run, index_packets

Pixels = NDArray[np.uint8]
PixelFormat = Literal["rgb24", "gray"]

# These hold packets whose frames are not shown, and stamps that are not presentation times.
_CODECS_WITH_HIDDEN_FRAMES = ("vp8",)
_CONTAINERS_WITHOUT_TIMES = ("avi",)


class VideoError(ValueError):
    """A video file is missing, unreadable or shorter than what was asked of it."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds."""

    frames: int
    """Exact number of frames that are presented."""
    frame_rate: float
    """Mean frames per second."""
    height: int
    """Pixels, as displayed: after the rotation that phones record."""
    width: int
    duration: float
    """Seconds from the first frame's beginning to the last one's end."""


def probe(path: Path) -> VideoInfo:
    """What a video holds; decodes one frame, or all where packets do not tell their number.

    Raises:
        VideoError: the file is missing, damaged or truncated; names the file.
    """
    with Video.open(path) as video:
        return video.info()


def read_frames(
    path: Path,
    indices: Sequence[int] | None = None,
    pixels: PixelFormat = "rgb24",
    threads: int = 1,
) -> Tensor:
    """Frames of a video in the order asked for, as displayed, uint8 [C, T, H, W].

    Only the wanted frames are converted and kept. Stored pixels are taken to be square.

    Args:
        path: video file.
        indices: frame numbers from 0 in presentation order, repetitions allowed; `None` for all.
        pixels: `"rgb24"` (C = 3) or `"gray"` (luma, C = 1).
        threads: decoding threads; more than one only pays where nothing else runs in parallel.

    Raises:
        VideoError: the file is missing, damaged, has no such frame, or holds fewer than its header
            says; names the file.
        ValueError: a negative or no frame number.
    """
    if indices is not None and (len(indices) == 0 or min(indices) < 0):
        raise ValueError(f"indices: expected frame numbers from 0, got {list(indices)}")
    with Video.open(path, threads) as video:
        order = range(video.frames) if indices is None else indices
        kept = dict(video.decode(order, pixels))
        # The frames as channels first are a view: copying them here would cost as much as decoding.
        frames = torch.from_numpy(np.stack([kept[number] for number in order]))
    return frames[None] if pixels == "gray" else frames.permute(3, 0, 1, 2)


class Video:
    """An open video file. Use `Video.open`.

    Raises:
        VideoError: from any method, as `read_frames`.
    """

    def __init__(self, path: Path, container: InputContainer, threads: int) -> None:
        """Read the packets' times."""
        self.path = path
        self._container = container
        self._threads = threads
        if not container.streams.video:
            raise VideoError(f"{path}: holds no video")
        self._stream = container.streams.video[0]
        self._set_threads(self._stream)
        ordered = (
            self._stream.codec_context.name not in _CODECS_WITH_HIDDEN_FRAMES
            and container.format.name not in _CONTAINERS_WITHOUT_TIMES
        )
        with _errors_that_name(path):
            # Before `skip_frame` is ever set: the AV1 decoder keeps what it finds when opened.
            self._stream.codec_context.open(strict=False)
            self._index = index_packets(container.demux(self._stream), ordered)
        self._refuse_truncated()

    @classmethod
    @contextmanager
    def open(cls, path: Path, threads: int = 1) -> Iterator[Video]:
        """Open a file for reading with so many decoding threads."""
        if threads < 1:
            raise ValueError(f"threads: expected at least 1, got {threads}")
        with _errors_that_name(path):
            container = av.open(path, "r")
        with container:
            yield cls(path, container, threads)

    @cached_property
    def frames(self) -> int:
        """Number of frames, by counting while decoding only where the packets do not tell."""
        if self._index.random_access:
            return self._index.frames
        with _errors_that_name(self.path):
            return sum(1 for _ in self._all_frames())

    def info(self) -> VideoInfo:
        """What the file holds."""
        height, width = next(pixels for _, pixels in self.decode([0], "gray")).shape
        base = float(self._stream.time_base or 0)
        index = self._index
        duration = float(index.end - index.times[index.shown[0]]) * base
        mean_rate = self.frames / duration if duration else 0.0
        frame_rate = float(self._stream.average_rate or mean_rate)
        return VideoInfo(self.frames, frame_rate, height, width, duration)

    def decode(self, numbers: Iterable[int], pixels: PixelFormat) -> Iterator[tuple[int, Pixels]]:
        """Frames, as displayed, one at a time: each wanted one once, in no particular order.

        Args:
            numbers: frame numbers from 0, repetitions allowed.
            pixels: `"rgb24"` for [H, W, 3], `"gray"` for [H, W].

        Yields:
            Frame number and pixels.
        """
        wanted = set(numbers)
        beyond = sorted(number for number in wanted if number >= self.frames)
        if beyond:
            raise VideoError(
                f"{self.path}: frame {beyond[0]} is missing, the file has {self.frames} frames"
            )
        reformatter = VideoReformatter()
        size: tuple[int, int] | None = None
        with _errors_that_name(self.path):
            for number, frame in self._wanted_frames(wanted):
                # One conversion thread: more were not faster, and loaders run in parallel.
                converted = reformatter.reformat(frame, format=pixels, threads=1)
                array = converted.to_ndarray().astype(np.uint8, copy=False)
                displayed = _as_displayed(array, _display_matrix(frame))
                size = size or (displayed.shape[0], displayed.shape[1])
                if displayed.shape[:2] != size:
                    found = f"{size[0]} x {size[1]}, {displayed.shape[0]} x {displayed.shape[1]}"
                    raise VideoError(f"{self.path}: the size of the frames changes ({found})")
                yield number, displayed

    def _wanted_frames(self, wanted: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        missing = set(wanted)
        if self._index.random_access:
            for run in self._index.runs(wanted):
                for number, frame in self._decode_run(run):
                    missing.discard(number)
                    yield number, frame
        if missing:
            yield from self._count_to(missing)

    def _decode_run(self, run: Run) -> Iterator[tuple[int, av.VideoFrame]]:
        """The frames of a run that random access gives undamaged."""
        decoder = self._stream.codec_context
        for packet in self._packets(run):
            wanted = packet is None or packet.pts in run.frames
            decoder.skip_frame = "DEFAULT" if wanted else "NONREF"
            try:
                decoded = decoder.decode(packet)
            except av.InvalidDataError:
                return  # counting says whether the file is damaged or only this way in
            for frame in decoded:
                if frame.pts in run.frames and not frame.is_corrupt:
                    yield run.frames[frame.pts], frame

    def _packets(self, run: Run) -> Iterator[av.Packet[av.VideoStream] | None]:
        """The packets of a run and the end mark; nothing if they cannot be reached."""
        seek_times = self._index.seek_times
        # Not every container's seeking can be trusted; from the start all packets come by.
        for target in dict.fromkeys((seek_times[run.first], seek_times[0])):
            self._container.seek(target, stream=self._stream)
            packets = self._numbered_packets()
            number, packet = next(((n, p) for n, p in packets if n >= run.first), (-1, None))
            if packet is not None and number == run.first:
                yield packet
                yield from (p for n, p in _up_to(packets, run.last))
                yield None
                return

    def _numbered_packets(self) -> Iterator[tuple[int, av.Packet[av.VideoStream]]]:
        for packet in self._container.demux(self._stream):
            if packet.size:
                yield self._index.numbers.get((packet.pos, packet.pts), -1), packet

    def _count_to(self, missing: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        left = set(missing)
        for number, frame in enumerate(self._all_frames()):
            if number in left:
                if frame.is_corrupt:
                    raise VideoError(f"{self.path}: frame {number} is damaged")
                left.remove(number)
                yield number, frame
            if not left:
                return
        raise VideoError(f"{self.path}: frame {min(left)} is missing, the file is damaged")

    def _all_frames(self) -> Iterator[av.VideoFrame]:
        with av.open(self.path, "r") as container:
            self._set_threads(container.streams.video[0])
            yield from container.decode(video=0)

    def _set_threads(self, stream: av.VideoStream) -> None:
        stream.thread_count = self._threads
        stream.thread_type = "AUTO" if self._threads > 1 else "NONE"

    def _refuse_truncated(self) -> None:
        """Compare the packets with what the header announces (.mp4, .mov, .avi)."""
        announced = self._stream.frames
        if "mov" in self._container.format.name:
            # What an edit list cuts away is announced, but in no packet.
            announced = min(announced, len(self._stream.index_entries))
        found = len(self._index.times)
        if found < max(announced, 1):
            raise VideoError(
                f"{self.path}: holds {found} of {announced} frames, the file is truncated"
            )


def _up_to(
    packets: Iterable[tuple[int, av.Packet[av.VideoStream]]], last: int
) -> Iterator[tuple[int, av.Packet[av.VideoStream]]]:
    for number, packet in packets:
        if number > last:
            return
        yield number, packet


@contextmanager
def _errors_that_name(path: Path) -> Iterator[None]:
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: cannot be decoded ({error.strerror})") from error


def _display_matrix(frame: av.VideoFrame) -> NDArray[np.int32] | None:
    data = cast("Mapping[str, bytes]", frame.side_data).get("DISPLAYMATRIX")
    return None if data is None else np.frombuffer(bytes(data), np.int32).reshape(3, 3)


def _as_displayed(pixels: Pixels, matrix: NDArray[np.int32] | None) -> Pixels:
    """Rotate by quarter turns and mirror, as ISO/IEC 14496-12 says: (x, y) = (x', y') matrix."""
    if matrix is None:
        return pixels
    (a, b), (c, d) = matrix[:2, :2]
    if abs(a) >= abs(b):
        across, down = a, d
    else:
        across, down = c, b
        pixels = pixels.swapaxes(0, 1)
    return pixels[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]
