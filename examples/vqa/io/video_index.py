"""Which packet of a video file holds which frame, and where decoding can begin.

The index is had by reading the file's packets without decoding them. A frame's number is the place
of its presentation time among all presentation times: containers store frames in decoding order,
may begin at any time (negative ones too), and need not have a constant frame rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import av
import numpy as np
from numpy.typing import NDArray

PacketKey = tuple[int | None, int | None]


@dataclass(frozen=True)
class Stretch:
    """Packets to decode in one go, by their numbers, and the frames wanted from them."""

    first: int  # a key frame's packet
    last: int
    frames: dict[int, int]  # frame number by presentation time


@dataclass(frozen=True)
class FrameIndex:
    """The packets of a video stream in decoding order.

    `random_access` says whether the packets tell which frames decoding gives. Where they do not
    (no or repeated presentation times, frames before the first key frame, packets without a frame
    to show), frames have to be counted while decoding from the start.
    """

    times: NDArray[np.int64]  # presentation time of every packet; decoding time if it has none
    key: NDArray[np.bool_]  # packets of frames at which decoding can begin
    shown: NDArray[np.int64]  # packets by presentation of their frames; an edit list hides some
    seek_times: tuple[int, ...]  # decoding time, or else presentation time, of every packet
    numbers: dict[PacketKey, int]  # packet by its position in the file and presentation time
    end: int  # when the last frame's presentation ends
    random_access: bool

    def stretches(self, wanted: Iterable[int]) -> Iterator[Stretch]:
        """How to decode as little as possible for some frames.

        A frame needs the last key frame that neither is decoded nor presented after it (the
        frames between a key frame of an open group of pictures and its predecessors in
        presentation need the group before), and everything from there to its own packet.
        """
        stretch: Stretch | None = None
        for number in sorted(set(wanted)):
            packet = int(self.shown[number])
            before = self.key[: packet + 1] & (self.times[: packet + 1] <= self.times[packet])
            first = int(np.flatnonzero(before)[-1])
            frames = {int(self.times[packet]): number}
            if stretch is not None and first > stretch.last:
                yield stretch
                stretch = None
            if stretch is not None:
                first, packet = min(first, stretch.first), max(packet, stretch.last)
                frames |= stretch.frames
            stretch = Stretch(first, packet, frames)
        if stretch is not None:
            yield stretch


def index_packets(packets: Iterable[av.Packet[av.VideoStream]], ordered: bool) -> FrameIndex:
    """The index of all packets of a stream; `ordered` if one can trust the times that they name."""
    rows = [
        (packet.pts, packet.dts, packet.pos, packet.is_keyframe, packet.is_discard, packet.duration)
        for packet in packets
        if packet.size
    ]
    times = np.array([next((t for t in row[:2] if t is not None), 0) for row in rows], np.int64)
    key = np.array([row[3] for row in rows], np.bool_)
    visible = np.flatnonzero([not row[4] for row in rows])
    shown = visible[np.argsort(times[visible], kind="stable")]
    numbers: dict[PacketKey, int] = {(row[2], row[0]): number for number, row in enumerate(rows)}
    return FrameIndex(
        times=times,
        key=key,
        shown=shown,
        seek_times=tuple((row[0] or 0) if row[1] is None else row[1] for row in rows),
        numbers=numbers,
        end=_end(times[shown], rows[int(shown[-1])][5] or 0) if len(shown) else 0,
        random_access=(
            ordered
            and len(shown) > 0
            and all(row[0] is not None for row in rows)
            and len(numbers) == len(rows)
            and bool(np.all(np.diff(times[shown]) > 0))
            and bool(key[0])
            and times[shown[0]] >= times[0]
        ),
    )


def _end(times: Sequence[int] | NDArray[np.int64], last: int) -> int:
    """End of the last frame, which lasts as long as the mean if the file does not say."""
    if last == 0 and len(times) > 1:
        last = round((int(times[-1]) - int(times[0])) / (len(times) - 1))
    return int(times[-1]) + last
