"""Small real .mp4 files for the tests."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vqa.encoding import Codec, encode

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
