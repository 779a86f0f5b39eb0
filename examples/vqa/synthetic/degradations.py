"""What happens to a clip between the lens and the viewer.

Every degradation takes uint8 RGB frames [T, H, W, 3] and a strength in [0, 1] (0: hardly visible,
1: very annoying) and returns frames of the same shape. A chain is a few of them in a row and, as
its last link, the encoder whose real output is the delivered file.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from vqa.io.video import Pixels

Codec = Literal["h264", "mpeg4"]

FRAME_RATE = 24


def encode(clip: Pixels, codec: Codec, quantiser: int, frame_rate: int) -> bytes:
    """An .mp4 file of a clip [T, H, W, 3], H and W even.

    The quantiser is the constant rate factor 0..51 of H.264 (x264) or the constant quantiser 1..31
    of MPEG-4 part 2; larger is worse. The same input and encoder build give the same bytes.
    """
    name, options = "mpeg4", {"qmin": str(quantiser), "qmax": str(quantiser)}
    if codec == "h264":
        # With its macroblock tree x264 was seen to write other bytes from one call to the next.
        options = {"crf": str(quantiser), "preset": "veryfast", "x264-params": "mbtree=0"}
        name = "libx264"
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(name, rate=frame_rate, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # Slices depend on the number of threads, and that on the machine.
        stream.thread_count = 1
        for pixels in clip:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def decode(file: bytes) -> Pixels:
    """All frames of an encoded file held in memory, uint8 RGB [T, H, W, 3]."""
    with av.open(io.BytesIO(file), "r") as container:
        # One decoding thread: callers run several processes, one per core.
        container.streams.video[0].thread_count = 1
        return np.stack(
            [frame.to_ndarray(format="rgb24", threads=1) for frame in container.decode(video=0)]
        )


@dataclass(frozen=True)
class Link:
    """One degradation of a chain and its strength in [0, 1]."""

    kind: str
    strength: float


Chain = tuple[Link, ...]
"""Degradations in the order in which they happen, the last one the encoder that writes the file."""


def degrade(clip: Pixels, chain: Chain, random: np.random.Generator) -> bytes:
    """Run a clip [T, H, W, 3] through a chain: the .mp4 file, or the .jpg file of one frame."""
    *links, delivery = chain
    for link in links:
        clip = _DEGRADATIONS[link.kind](clip, link.strength, random)
    if delivery.kind == "jpeg":
        (frame,) = clip
        return _encode_jpeg(frame, delivery.strength)
    codec, quantiser = encoder_setting(delivery)
    return encode(clip, codec, quantiser, FRAME_RATE)


def encoder_setting(link: Link) -> tuple[Codec, int]:
    """Codec and quantiser of an encoding link: rate factor 14..46, or MPEG-4 quantiser 1..31."""
    if link.kind == "h264":
        return "h264", round(14 + 32 * link.strength)
    if link.kind == "mpeg4":
        return "mpeg4", round(1 + 30 * link.strength**1.5)
    raise ValueError(f"kind: expected 'h264' or 'mpeg4' as delivery, got {link.kind!r}")


def rescale(clip: Pixels, strength: float, random: np.random.Generator) -> Pixels:
    """Shrink to 1 .. 0.25 of the size and enlarge again, as sharing services do."""
    height, width = clip.shape[1:3]
    small = (round(width * (1 - 0.75 * strength)), round(height * (1 - 0.75 * strength)))
    frames = [
        Image.fromarray(frame)
        .resize(small, Image.Resampling.BICUBIC)
        .resize((width, height), Image.Resampling.BICUBIC)
        for frame in clip
    ]
    return np.stack([np.asarray(frame) for frame in frames])


def blur(clip: Pixels, strength: float, random: np.random.Generator) -> Pixels:
    """Defocus: Gaussian of standard deviation 0.3 .. 2.5 pixels."""
    sigma = 0.3 + 2.2 * strength
    return _to_pixels(ndimage.gaussian_filter(clip.astype(np.float32), (0, sigma, sigma, 0)))


def motion_blur(clip: Pixels, strength: float, random: np.random.Generator) -> Pixels:
    """Camera shake during exposure: a mean over 1 .. 9 pixels along rows or columns."""
    axis = int(random.integers(1, 3))
    return _to_pixels(
        ndimage.uniform_filter1d(clip.astype(np.float32), 1 + round(8 * strength), axis=axis)
    )


def noise(clip: Pixels, strength: float, random: np.random.Generator) -> Pixels:
    """Sensor noise: shot noise growing with the root of the signal plus read noise."""
    signal = clip.astype(np.float32)
    deviation = 28 * strength * (0.5 + 0.5 * np.sqrt(signal / 255))
    return _to_pixels(signal + deviation * random.standard_normal(clip.shape, dtype=np.float32))


def exposure(clip: Pixels, strength: float, random: np.random.Generator) -> Pixels:
    """Over- or underexposure by up to 2.5 stops in linear light, highlights clipped."""
    stops = 2.5 * strength * random.choice([-1.0, 1.0])
    linear = (clip.astype(np.float32) / 255) ** 2.2
    return _to_pixels(255 * np.clip(linear * 2.0**stops, 0, 1) ** (1 / 2.2))


def fading(clip: Pixels, strength: float, random: np.random.Generator) -> Pixels:
    """Haze or a faded sensor: contrast shrinks towards grey, to a quarter at most."""
    return _to_pixels(128 + (clip.astype(np.float32) - 128) * (1 - 0.75 * strength))


def frozen(clip: Pixels, strength: float, random: np.random.Generator) -> Pixels:
    """A stalled stream: one frame stays for up to 90 % of the clip, then playback jumps ahead."""
    frames = len(clip)
    length = round(0.9 * strength * frames)
    start = int(random.integers(0, frames - length + 1))
    shown = np.arange(frames)
    shown[start : start + length] = start
    stalled: Pixels = clip[shown]
    return stalled


def stutter(clip: Pixels, strength: float, random: np.random.Generator) -> Pixels:
    """A starved player: every frame is shown 1 .. 6 times."""
    held = 1 + round(5 * strength)
    starved: Pixels = clip[np.arange(len(clip)) // held * held]
    return starved


def jpeg(clip: Pixels, strength: float, random: np.random.Generator) -> Pixels:
    """Every frame through a JPEG file of quality 95 .. 5."""
    frames = [Image.open(io.BytesIO(_encode_jpeg(frame, strength))) for frame in clip]
    return np.stack([np.asarray(frame) for frame in frames])


def _encode_jpeg(image: Pixels, strength: float) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=round(95 - 90 * strength))
    return file.getvalue()


def transcode(kind: Codec, clip: Pixels, strength: float, random: np.random.Generator) -> Pixels:
    """An encoding in the middle of a chain: what is uploaded is encoded again on delivery."""
    codec, quantiser = encoder_setting(Link(kind, strength))
    return decode(encode(clip, codec, quantiser, FRAME_RATE))


def _to_pixels(values: NDArray[np.floating]) -> Pixels:
    pixels: Pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return pixels


_DEGRADATIONS: dict[str, Callable[[Pixels, float, np.random.Generator], Pixels]] = {
    "rescale": rescale,
    "blur": blur,
    "motion_blur": motion_blur,
    "noise": noise,
    "exposure": exposure,
    "fading": fading,
    "frozen": frozen,
    "stutter": stutter,
    "h264": partial(transcode, "h264"),
    "mpeg4": partial(transcode, "mpeg4"),
    "jpeg": jpeg,
}
