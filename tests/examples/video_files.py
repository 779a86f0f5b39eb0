"""Small real video files for the tests."""

import struct
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.stream import Disposition
from numpy.typing import NDArray

from vqa.io.video import Video, VideoInfo
from vqa.synthetic.degradations import Codec, encode

Pixels = NDArray[np.uint8]


def numbered_clip(frames: int = 6, height: int = 48, width: int = 64) -> Pixels:
    """Frame t is grey of level 20 + 30 t, so that a decoded frame tells which one it is."""
    levels = 20 + 30 * np.arange(frames, dtype=np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (frames, height, width, 3)).copy()


def textured_clip(frames: int = 6, height: int = 48, width: int = 64, seed: int = 0) -> Pixels:
    """A texture that moves one pixel to the right every frame."""
    texture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.stack([np.roll(texture, shift, axis=1) for shift in range(frames)])


def write_video(path: Path, clip: Pixels, codec: Codec = "h264", quantiser: int = 14) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(clip, codec, quantiser, frame_rate=24))
    return path


@dataclass(frozen=True)
class Stream:
    """How a video file of some kind is written; what a phone or a web service may do."""

    container: str = "mp4"
    codec: str = "libx264"
    options: dict[str, str] = field(default_factory=dict)
    container_options: dict[str, str] = field(default_factory=dict)
    pixels: str = "yuv420p"
    times: Sequence[int] | None = None
    """Milliseconds of every frame; None for 25 frames per second."""
    audio_first: bool = False
    metadata: dict[str, str] = field(default_factory=dict)
    metadata_encoding: str = "utf-8"


def write_stream(path: Path, clip: Pixels, kind: Stream) -> Path:
    options = kind.container_options
    with av.open(
        str(path),
        "w",
        format=kind.container,
        options=options,
        metadata_encoding=kind.metadata_encoding,
    ) as container:
        container.metadata.update(kind.metadata)
        audio = container.add_stream("aac", rate=8000) if kind.audio_first else None
        stream = container.add_stream(kind.codec, rate=25, options=kind.options)
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = kind.pixels
        if kind.times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if audio is not None:
            container.mux(audio.encode(_silence()))
            container.mux(audio.encode())
        for number, pixels in enumerate(clip):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if kind.times is not None:
                frame.pts, frame.time_base = kind.times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def join_tracks(path: Path, sources: Sequence[Path], dispositions: Sequence[Disposition]) -> Path:
    """A file with the video track of each source, all of them copied as they are."""
    with ExitStack() as stack:
        target = stack.enter_context(av.open(str(path), "w"))
        pairs = []
        for source, disposition in zip(sources, dispositions, strict=True):
            container = stack.enter_context(av.open(str(source)))
            track = target.add_stream_from_template(container.streams.video[0])
            track.disposition = disposition
            pairs.append((container, track))
        for container, track in pairs:
            packets = container.demux(video=0)
            if path.suffix == ".avi":
                to_avi = BitStreamFilterContext("h264_mp4toannexb", container.streams.video[0])
                packets = (changed for packet in packets for changed in to_avi.filter(packet))
            for packet in packets:
                if packet.size:
                    packet.stream = track
                    target.mux(packet)
    return path


def cut(path: Path, share: float) -> Path:
    """Leave the first part of a file, as an interrupted download does."""
    path.write_bytes(path.read_bytes()[: round(share * path.stat().st_size)])
    return path


def _silence() -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
    frame.sample_rate = 8000
    return frame


def probe(path: Path) -> VideoInfo:
    """What a video holds."""
    with Video.open(path) as video:
        return video.info()


def decode_in_order(path: Path) -> Pixels:
    """All frames by plain decoding from the start: what every other way has to agree with."""
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def turn(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Write a display matrix into an .mp4 file, as phones do."""
    one = 1 << 16
    file = bytearray(path.read_bytes())
    identity = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    place = file.index(identity, file.index(b"tkhd"))
    file[place : place + 36] = struct.pack(
        ">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30
    )
    path.write_bytes(file)


def begin_later(path: Path, ticks: int) -> None:
    """Let the edit list of an .mp4 file cut off its beginning."""
    file = bytearray(path.read_bytes())
    place = file.index(b"elst") + 16  # behind name, version and flags, count, duration
    (begin,) = struct.unpack_from(">i", file, place)
    struct.pack_into(">i", file, place, begin + ticks)
    path.write_bytes(file)


def blank_packets(path: Path, first: int, last: int) -> None:
    """Overwrite the data of packets of an .mp4 file, so that their frames cannot be decoded."""
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    file = bytearray(path.read_bytes())
    for position, size in packets[first : last + 1]:
        file[position : position + size] = bytes(size)
    path.write_bytes(file)
