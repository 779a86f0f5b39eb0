"""Reading video files through PyAV: exactly the wanted frames, with as little decoding as possible.

Frames are numbered from 0 in presentation order, whatever their times are. `vqa.io.video_index`
numbers them from the packets, in milliseconds. Decoding then begins at the key frame before the
first wanted frame, leaves out frames that neither are wanted nor referred to, and goes on at a
later key frame where that saves decoding. It has to agree with counting while all frames are
decoded from the start, which is done for files whose packets do not tell (see `FrameIndex`), and
for frames that are not had in the other way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Literal, cast

import av
import numpy as np
import torch
from av.container import InputContainer
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from torch import Tensor

from vqa.io.files import shown
from vqa.io.video_index import Stretch, index_packets

Pixels = NDArray[np.uint8]
PixelFormat = Literal["rgb24", "gray"]

# These hold packets whose frames are not shown, and stamps that are not presentation times.
_CODECS_WITH_HIDDEN_FRAMES = ("vp8",)
_HDR = (16, 18)  # transfer characteristics PQ and HLG, as ITU-T H.273 numbers them
_CONTAINERS_WITHOUT_TIMES = ("avi",)
# Their headers say how long the file is; the duration of others is found at their end.
_CONTAINERS_THAT_SAY_HOW_LONG = ("matroska,webm", "flv", "mxf")


class VideoError(ValueError):
    """A video file is missing, unreadable or shorter than what was asked of it."""


@dataclass(frozen=True)
class VideoInfo:
    frames: int  # exact number of those that are presented
    frame_rate: float  # frames over duration, whatever the header says; 0 if unknown
    height: int  # in pixels as displayed: after the rotation that phones record
    width: int
    duration: float  # seconds from the first frame's beginning to the last one's end; 0 if unknown


def is_hdr(path: Path) -> bool:
    """Whether a file of any kind says that its brightness is that of HDR: PQ or HLG."""
    try:
        with _open(path) as container:
            return _shown_track(path, container).codec_context.color_trc in _HDR
    except Exception:  # as `_errors_that_name` has it; what cannot be opened says nothing
        return False


def read_frames(
    path: Path, indices: Sequence[int] | None = None, pixels: PixelFormat = "rgb24"
) -> Tensor:
    """Frames of a video in the order asked for, as displayed, uint8 [C, T, H, W].

    Repetitions are allowed; `None` asks for all frames. Only the wanted ones are converted and
    kept. C is 3, or 1 for `"gray"` (luma). Stored pixels are taken to be square.
    """
    if indices is not None and (len(indices) == 0 or min(indices) < 0):
        raise ValueError(f"indices: expected frame numbers from 0, got {list(indices)}")
    with Video.open(path) as video:
        order = range(video.frames) if indices is None else indices
        kept = dict(video.decode(order, pixels))
        # The frames as channels first are a view: copying them here would cost as much as decoding.
        frames = torch.from_numpy(np.stack([kept[number] for number in order]))
    return frames[None] if pixels == "gray" else frames.permute(3, 0, 1, 2)


class Video:
    """An open video file. Use `Video.open`. Every method may raise a `VideoError`."""

    def __init__(self, path: Path, container: InputContainer) -> None:
        self.path = path
        self._container = container
        self._size: tuple[int, ...] | None = None
        self._matrix: tuple[int, NDArray[np.int32] | None] | None = None
        with _errors_that_name(path):
            self._stream = _shown_track(path, container)
            ordered = (
                self._stream.codec_context.name not in _CODECS_WITH_HIDDEN_FRAMES
                and container.format.name not in _CONTAINERS_WITHOUT_TIMES
            )
            # Before `skip_frame` is ever set: the AV1 decoder keeps what it finds when opened.
            self._stream.codec_context.open(strict=False)
            indexed = len(self._stream.index_entries)
            self._index = index_packets(container.demux(self._stream), ordered)
            self._refuse_truncated(indexed)

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[Video]:
        with _errors_that_name(path):
            container = _open(path)
        with container:
            yield cls(path, container)

    @cached_property
    def frames(self) -> int:
        """Number of frames, by counting while decoding only where the packets do not tell."""
        return len(self._index.shown if self._index.random_access else self._counted_times)

    @cached_property
    def times(self) -> NDArray[np.float64] | None:
        """Seconds from the first frame's beginning to every frame's; None if the file has none."""
        base = float(self._stream.time_base or 0)
        if self._index.random_access:
            stamps: NDArray[np.int64] = self._index.times[self._index.shown]
        elif None in self._counted_times:
            return None
        else:
            stamps = np.array(self._counted_times, np.int64)
        return (stamps - stamps[0]) * base if np.all(np.diff(stamps) > 0) else None

    def info(self) -> VideoInfo:
        height, width = next(pixels for _, pixels in self.decode([0], "gray")).shape
        duration = self._duration()
        rate = self.frames / duration if duration else 0.0
        return VideoInfo(self.frames, rate, height, width, duration)

    def _duration(self) -> float:
        """Seconds that the frames are shown."""
        index, base = self._index, float(self._stream.time_base or 0)
        if self._container.format.name == "avi":
            # The length in pictures, empty ones (the last one stays) included.
            return self._stream.frames * base
        seconds = 0.0
        if index.random_access:
            seconds = float(index.end - index.times[index.shown[0]]) * base
        elif self.times is not None and self.frames > 1:
            seconds = float(self.times[-1]) * self.frames / (self.frames - 1)
        rate = float(self._stream.average_rate or self._stream.guessed_rate or 0)
        return seconds or (self.frames / rate if rate else 0.0)

    @cached_property
    def _counted_times(self) -> list[int | None]:
        """Of all frames that decoding gives, as the file has them."""
        with _errors_that_name(self.path):
            return [frame.pts for frame in self._all_frames()]

    def decode(self, numbers: Iterable[int], pixels: PixelFormat) -> Iterator[tuple[int, Pixels]]:
        """Each wanted frame once, in no particular order: its number and pixels [H, W(, 3)]."""
        wanted = set(numbers)
        beyond = sorted(number for number in wanted if number >= self.frames)
        if beyond:
            raise self._error(f"frame {beyond[0]} is missing, the file has {self.frames} frames")
        reformatter = VideoReformatter()
        with _errors_that_name(self.path):
            for number, frame in self._wanted_frames(wanted):
                # One conversion thread: more were not faster, and loaders run in parallel.
                converted = reformatter.reformat(frame, format=pixels, threads=1)
                array = converted.to_ndarray().astype(np.uint8, copy=False)
                displayed = _as_displayed(array, self._display_matrix(frame))
                size = displayed.shape[:2]
                self._size = self._size or size
                if size != self._size:
                    found = f"{self._size[0]} x {self._size[1]}, {size[0]} x {size[1]}"
                    raise self._error(f"the size of the frames changes ({found})")
                yield number, displayed

    def _display_matrix(self, frame: av.VideoFrame) -> NDArray[np.int32] | None:
        """How a frame is to be turned, looked up when the angle changes.

        A frame whose side data were looked at refers to itself, so that it stays in memory until
        Python looks for such circles: for dozens of frames.
        """
        if self._matrix is None or self._matrix[0] != frame.rotation:
            data = cast("Mapping[str, bytes]", frame.side_data).get("DISPLAYMATRIX")
            matrix = None if data is None else np.frombuffer(bytes(data), np.int32).reshape(3, 3)
            self._matrix = (frame.rotation, matrix)
        return self._matrix[1]

    def _wanted_frames(self, wanted: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        missing = set(wanted)
        if self._index.random_access:
            for stretch in self._index.stretches(wanted):
                for number, frame in self._decode_stretch(stretch):
                    missing.discard(number)
                    yield number, frame
        if missing:
            yield from self._count_to(missing)

    def _decode_stretch(self, stretch: Stretch) -> Iterator[tuple[int, av.VideoFrame]]:
        """The frames of a stretch that random access gives undamaged."""
        decoder = self._stream.codec_context
        for packet in self._packets(stretch):
            wanted = packet is None or packet.pts in stretch.frames
            decoder.skip_frame = "DEFAULT" if wanted else "NONREF"
            try:
                decoded = decoder.decode(packet)
            except av.FFmpegError:
                return  # counting says whether the file is damaged or only this way in
            for frame in decoded:
                if frame.pts in stretch.frames and not frame.is_corrupt:
                    yield stretch.frames[frame.pts], frame

    def _packets(self, stretch: Stretch) -> Iterator[av.Packet[av.VideoStream] | None]:
        """The packets of a stretch and the end mark; nothing if they cannot be reached."""
        seek_times = self._index.seek_times
        # Not every container's seeking can be trusted; from the start all packets come by.
        for target in dict.fromkeys((seek_times[stretch.first], seek_times[0])):
            try:
                self._container.seek(target, stream=self._stream)
            except av.FFmpegError:  # raw streams cannot be sought
                continue
            packets = self._numbered_packets()
            number, packet = next(((n, p) for n, p in packets if n >= stretch.first), (-1, None))
            if packet is not None and number == stretch.first:
                yield packet
                rest = takewhile(lambda own: own[0] <= stretch.last, packets)
                yield from (packet for _, packet in rest)
                yield None
                return

    def _numbered_packets(self) -> Iterator[tuple[int, av.Packet[av.VideoStream]]]:
        for packet in self._container.demux(self._stream):
            if packet.size:
                yield self._index.numbers.get((packet.pos, packet.pts), -1), packet

    def _count_to(self, left: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        for number, frame in enumerate(self._all_frames()):
            if number in left:
                if frame.is_corrupt:
                    raise self._error(f"frame {number} is damaged")
                left.remove(number)
                yield number, frame
            if not left:
                return
        raise self._error(f"frame {min(left)} is missing, the file is damaged")

    def _all_frames(self) -> Iterator[av.VideoFrame]:
        with _open(self.path) as container:
            yield from container.decode(_shown_track(self.path, container))

    def _error(self, what: str) -> VideoError:
        return VideoError(f"{shown(self.path)}: {what}")

    def _refuse_truncated(self, indexed: int) -> None:
        """Compare what is there with what the header announces and what was `indexed` before."""
        container, announced = self._container.format.name, self._stream.frames
        found = len(self._index.times)
        if "mov" in container:
            # What an edit list cuts away is announced, but in no packet; what the header of a
            # fragment lists is not announced elsewhere.
            entries = len(self._stream.index_entries)
            announced = min(announced, entries) if announced else entries
        elif container in ("avi", "gif"):
            announced = 1  # it counts empty packets, too, or pictures without a delay to show them
        if not found:
            raise self._error("holds a video without frames")
        if found < announced:
            raise self._error(f"holds {found} of {announced} frames, the file is truncated")
        if "mov" in container and _ends_in_fragment_header(self.path):
            raise self._error(
                f"holds {found} frames and a part of the next fragment, the file is truncated"
            )
        # An .avi file's index is at its end: if it is there, so is everything before.
        if container in _CONTAINERS_THAT_SAY_HOW_LONG or (
            container == "avi" and indexed < max(found, 2)
        ):
            self._refuse_shortened()

    def _refuse_shortened(self) -> None:
        """Compare the end of the packets with the duration that the header announces."""
        base = float(self._stream.time_base or 0)
        announced = (self._container.duration or 0) / av.time_base
        if self._container.format.name == "avi":  # the duration was adapted to the file's size
            announced = self._stream.frames * base
        steps = np.diff(np.unique(self._index.times)) * base
        # A last frame is shown as long as another one, but not every header counts that.
        least = announced - max(0.1, 1.5 * float(steps.max(initial=0)))
        # Sound may go on when the pictures have ended; few files need this second look.
        if self._index.end * base < least and (end := self._end_of_all_tracks()) < least:
            raise self._error(f"holds {end:.2f} of {announced:.2f} seconds, the file is truncated")

    def _end_of_all_tracks(self) -> float:
        """In seconds, with another packet's length for what encoders of sound put before it."""
        with _open(self.path) as container:
            return max(
                (
                    float((packet.pts + 2 * (packet.duration or 0)) * packet.time_base)
                    for packet in container.demux()
                    if packet.size and packet.pts is not None and packet.time_base
                ),
                default=0.0,
            )


def _open(path: Path) -> InputContainer:
    # Titles are of no interest here, and old files have them in any encoding. Without "file:" a
    # colon in a name would end a protocol's.
    return av.open(f"file:{path}", "r", metadata_errors="backslashreplace")


def _shown_track(path: Path, container: InputContainer) -> av.VideoStream:
    """The video track that players and ffmpeg take; a cover picture is none.

    It decodes on one thread: files are read in several processes, one for each core.
    """
    tracks = [t for t in container.streams.video if not t.disposition & Disposition.attached_pic]
    if not tracks:
        raise VideoError(f"{shown(path)}: holds no video")
    best = container.streams.best("video")
    track = next((t for t in tracks if best is not None and t.index == best.index), tracks[0])
    if track.codec_context is None:
        raise VideoError(f"{shown(path)}: cannot be decoded (no decoder for its video)")
    track.thread_count, track.thread_type = 1, "NONE"
    return track


@contextmanager
def _errors_that_name(path: Path) -> Iterator[None]:
    """Around PyAV's work: beside FFmpeg's errors it raises what Python knows for odd files.

    Among those are UnicodeDecodeError (also of subtitles' and tracks' titles), AttributeError and
    ValueError (no decoder, pixel formats), MemoryError (an absurd size in a header), IndexError
    and OverflowError.
    """
    try:
        yield
    except VideoError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise VideoError(f"{shown(path)}: cannot be decoded ({reason})") from error


def _ends_in_fragment_header(path: Path) -> bool:
    """Whether the last box of an .mp4 file (ISO/IEC 14496-12, 4.2) is a part of a `moof`.

    What comes behind it is announced nowhere else. Other bytes at the end do not matter to players.
    """
    end, begin, name = path.stat().st_size, 0, b""
    with path.open("rb") as file:
        while begin < end:
            file.seek(begin)
            header = file.read(16)
            size, name = int.from_bytes(header[:4], "big"), header[4:8]
            if size == 1:  # the size is 64 bits behind the name
                size = int.from_bytes(header[8:16], "big")
            begin += size if size >= 8 else end  # 0: to the end of the file
    return name == b"moof" and begin > end


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
