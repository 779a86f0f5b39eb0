"""From a video file to what FAST-VQA takes: clips of fragments.

Which frames -> decode only them -> augmentation of whole frames -> fragments -> normalise.
Fragments are cut from each frame as it is decoded, so that whole frames are never held: for large
videos that takes as much time as decoding them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vqa.io.video import Pixels, Video
from vqa.models import imagenet
from vqa.sampling.augmentation import Augmentation, draw_augmentation
from vqa.sampling.fragments import Offsets, cut_frame, draw_offsets, enlarge, enlarge_as_published
from vqa.sampling.frames import ClipSampling, Rule, draw_frames

Behaviour = Literal["fixed", "released"]
# A decoded frame where it is used: clip, place in the clip, pixels.
Uses = Iterable[tuple[int, int, Pixels]]

# Of red, green and blue, on values 0..255.
MEAN = tuple(255 * mean for mean in imagenet.MEAN)
DEVIATION = tuple(255 * deviation for deviation in imagenet.DEVIATION)


@dataclass(frozen=True)
class FastVqaSampling(ClipSampling):
    """How FAST-VQA looks at a video."""

    behaviour: Behaviour = "fixed"
    """`"fixed"`: the middle of everything in testing, and a grid that covers enlarged frames;
    `"released"`: as released, random in testing, too, with the grid of the original size: of
    enlarged frames only the top left part is seen, and neighbouring cells overlap."""
    augmentation: Augmentation = "none"
    """Of whole frames; applies wherever a generator is given, so leave it out for testing."""


FAST_VQA = FastVqaSampling()
FAST_VQA_M = FastVqaSampling(frames=16, grid=4)


def read_clips(
    path: Path, sampling: FastVqaSampling, generator: torch.Generator | None = None
) -> Tensor:
    """Clips of fragments of a video file, float32 [clips, 3, frames, S, S] with S = grid * patch.

    The generator draws frames, augmentation and patch positions; without one the clips are in the
    middle of their segments and the patches in the middle of their cells.
    """
    for name, settled in (("behaviour", "fixed"), ("augmentation", "none")):
        value = getattr(sampling, name)
        if generator is None and value != settled:
            raise ValueError(f"generator: expected one, {name} {value!r} is random")
    with Video.open(path) as video:
        rule: Rule = "fixed" if sampling.behaviour == "fixed" else "fast_vqa"
        indices = draw_frames(video.frames, sampling, rule, generator)
        uses = uses_of(video.decode(indices.flatten().tolist(), "rgb24"), indices)
        if sampling.augmentation != "none" and generator is not None:
            uses = _augmented(uses, sampling, generator)
        return normalise(_cut(uses, sampling, generator).permute(0, 4, 1, 2, 3))


def normalise(clips: Tensor) -> Tensor:
    """(value - mean) / deviation of [clips, 3, T, H, W], 0..255, float32; in place if it can."""
    pixels = clips.to(torch.float32, memory_format=torch.contiguous_format)
    mean, deviation = (torch.tensor(value).view(3, 1, 1, 1) for value in (MEAN, DEVIATION))
    return pixels.sub_(mean).div_(deviation)


def uses_of(frames: Iterable[tuple[int, Pixels]], indices: Tensor) -> Uses:
    """Each decoded frame wherever clips of numbers [clips, frames] use it."""
    places: dict[int, list[tuple[int, int]]] = {}
    for clip, numbers in enumerate(indices.tolist()):
        for time, number in enumerate(numbers):
            places.setdefault(number, []).append((clip, time))
    for number, frame in frames:
        for clip, time in places[number]:
            yield clip, time, frame


def _augmented(uses: Uses, sampling: FastVqaSampling, generator: torch.Generator) -> Uses:
    """Frames augmented as they come, each clip by a draw of its own before any patch is drawn."""
    changes = [draw_augmentation(sampling.augmentation, generator) for _ in range(sampling.clips)]

    def changed(clip: int, frame: Pixels) -> Pixels:
        whole = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None]
        pixels: Pixels = changes[clip](whole)[0].permute(1, 2, 0).numpy()
        return pixels

    return ((clip, time, changed(clip, frame)) for clip, time, frame in uses)


def _cut(uses: Uses, sampling: FastVqaSampling, generator: torch.Generator | None) -> Tensor:
    """Fragments of all clips, uint8 [clips, T, S, S, 3]."""
    shape = (sampling.clips, sampling.frames, sampling.side, sampling.side, 3)
    mosaics = np.empty(shape, np.uint8)
    offsets: Offsets | None = None
    released = sampling.behaviour == "released"
    for clip, time, frame in uses:
        large = _enlarged(frame, sampling)
        # The published code forgets that it has enlarged the frames.
        height, width = (frame if released else large).shape[:2]
        size = (height, width)
        if offsets is None:
            offsets = draw_offsets(sampling, size, 1, sampling.clips, generator, released)
        rows, columns = (offset[0, :, :, clip] for offset in offsets)
        mosaics[clip, time] = cut_frame(large, (rows, columns), sampling.patch, size)
    return torch.from_numpy(mosaics)


def _enlarged(frame: Pixels, sampling: FastVqaSampling) -> Pixels:
    if min(frame.shape[:2]) >= sampling.side:
        return frame
    grow = enlarge if sampling.behaviour == "fixed" else enlarge_as_published
    planes = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[:, None]
    large: Pixels = grow(planes, sampling.side)[:, 0].permute(1, 2, 0).numpy()
    return large
