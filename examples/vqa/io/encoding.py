"""Small video files in memory: what a degradation chain writes and reads again."""

from __future__ import annotations

import io
from typing import Literal

import av
import numpy as np

from vqa.io.video import Pixels

Codec = Literal["h264", "mpeg4"]


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
        # One decoding thread: callers run several processes, one per core.
        container.streams.video[0].thread_count = 1
        return np.stack(
            [frame.to_ndarray(format="rgb24", threads=1) for frame in container.decode(video=0)]
        )
