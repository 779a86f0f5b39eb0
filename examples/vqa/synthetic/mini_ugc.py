"""mini-UGC: a small offline data set of real .mp4 files with *synthetic* opinion scores.

A camera moves over real photographs, the clip goes through a chain of degradations that ends in a
real H.264 or MPEG-4 encoder, and simulated raters score it (`vqa.synthetic.opinion`). Three parts:

* `train` and `test`: the same mix of degradations, no photograph in common;
* `ood` (out of domain): the test photographs under a second mix.

On disk: `<part>/<clip>.mp4`, the label lists `<part>.txt` and `mini_ugc.json`, which says how the
set was made. The set is built in a temporary folder and renamed when it is complete.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from vqa.io.label_list import LabelledVideo, write_label_list
from vqa.processes import process_pool, progress_bar
from vqa.synthetic.degradations import FRAME_RATE, Chain, Kind, Link, degrade
from vqa.synthetic.generated_folder import GeneratedFolder
from vqa.synthetic.opinion import Content, Opinion, expected_quality, measure_content, rate
from vqa.synthetic.photographs import (
    PHOTOGRAPHS,
    Photograph,
    draw_camera_path,
    film,
    load_photograph,
    photographs_of,
)

MiniUgcPart = Literal["train", "test", "ood"]
PARTS: tuple[MiniUgcPart, ...] = ("train", "test", "ood")

# Raise it when the same settings would give other files or scores: caches are then rebuilt.
VERSION = 1

# Where the examples build it and look for it unless told otherwise; git ignores it.
DEFAULT_FOLDER = Path(__file__).resolve().parents[3] / "data" / "mini-ugc"

_FOLDER = GeneratedFolder("mini-UGC", "mini_ugc.json")


@dataclass(frozen=True)
class Mix:
    """Degradations that a part draws from, and the encoders that deliver its clips."""

    kinds: tuple[Kind, ...]
    deliveries: tuple[Kind, ...]


_FIRST_MIX = Mix(
    kinds=("rescale", "blur", "noise", "exposure", "frozen", "mpeg4"),
    deliveries=("h264", "mpeg4"),
)
_SECOND_MIX = Mix(
    kinds=("rescale", "motion_blur", "noise", "fading", "stutter", "h264"),
    deliveries=("h264",),
)
MIXES: dict[MiniUgcPart, Mix] = {"train": _FIRST_MIX, "test": _FIRST_MIX, "ood": _SECOND_MIX}


@dataclass(frozen=True)
class MiniUgcSettings:
    """What to build. Clips are made per photograph, so that every content weighs the same."""

    seed: int = 2024
    """Decides camera paths, chains, noise and raters."""
    frames: int = 12
    height: int = 128
    width: int = 160
    photographs: int | None = None
    """Use only the first so many photographs of each part (None: all of them)."""
    train_clips: int = 10
    """Training clips per photograph."""
    test_clips: int = 12
    """Test clips per photograph; the out-of-domain part has as many."""
    opinion: Opinion = field(default_factory=Opinion)


@dataclass(frozen=True)
class _ClipPlan:
    """All that one clip depends on."""

    photograph: Photograph
    part: MiniUgcPart
    number: int
    settings: MiniUgcSettings

    @property
    def path(self) -> str:
        return f"{self.part}/{self.photograph.name}_{self.number:02d}.mp4"

    def random(self) -> np.random.Generator:
        """The clip's own stream, so that clips can be made in any order and in parallel."""
        place = (PARTS.index(self.part), PHOTOGRAPHS.index(self.photograph), self.number)
        return np.random.default_rng((self.settings.seed, *place))


def build_mini_ugc(folder: Path, settings: MiniUgcSettings, processes: int = 1) -> bool:
    """Build the set unless it is there already, made the same way: as `GeneratedFolder.build`.

    The result does not depend on how many processes encode clips.
    """
    record = {"version": VERSION, "settings": asdict(settings)}
    return _FOLDER.build(folder, record, lambda empty: _write_parts(empty, settings, processes))


def is_mini_ugc(folder: Path) -> bool:
    """Whether a complete set, however made, is in the folder."""
    return _FOLDER.is_complete(folder)


def draw_chain(mix: Mix, random: np.random.Generator) -> Chain:
    """Draw a chain: none to two degradations, then an encoder that is generous half of the time."""
    count = int(random.choice(3, p=(0.25, 0.5, 0.25)))
    kinds = random.choice(len(mix.kinds), size=count, replace=False)
    links = tuple(Link(mix.kinds[kind], float(random.uniform(0.1, 1.0))) for kind in kinds)
    delivery = mix.deliveries[int(random.integers(len(mix.deliveries)))]
    strength = float(random.uniform(0.1, 1.0)) if random.random() < 0.5 else 0.05
    return Chain(links, Link(delivery, strength))


def _write_parts(folder: Path, settings: MiniUgcSettings, processes: int) -> None:
    plans = list(_plans(settings))
    for part in PARTS:
        (folder / part).mkdir()
    qualities: list[float] = []
    with progress_bar("mini-UGC", len(plans), "clip") as bar:
        for quality in _make_clips(plans, folder, processes):
            qualities.append(quality)
            bar.update()
    scores = rate(qualities, settings.opinion, np.random.default_rng(settings.seed))
    videos = [
        LabelledVideo(plan.path, settings.frames / FRAME_RATE, float(FRAME_RATE), float(score))
        for plan, score in zip(plans, scores, strict=True)
    ]
    for part in PARTS:
        write_label_list(folder / f"{part}.txt", [v for v in videos if v.path.startswith(part)])


def _make_clips(plans: list[_ClipPlan], folder: Path, processes: int) -> Iterator[float]:
    folders = [folder] * len(plans)
    if processes == 1:
        yield from map(_make_clip, plans, folders)
        return
    with process_pool(processes) as pool:
        yield from pool.map(_make_clip, plans, folders, chunksize=8)


def _plans(settings: MiniUgcSettings) -> Iterator[_ClipPlan]:
    for part in PARTS:
        clips = settings.train_clips if part == "train" else settings.test_clips
        of_part = photographs_of("train" if part == "train" else "test", settings.photographs)
        for photograph in of_part:
            for number in range(clips):
                yield _ClipPlan(photograph, part, number, settings)


def _make_clip(plan: _ClipPlan, folder: Path) -> float:
    """Write one clip; the quality that its raters perceive."""
    random, settings = plan.random(), plan.settings
    photograph = load_photograph(plan.photograph)
    height, width = photograph.shape[:2]
    frame_size = (settings.height, settings.width)
    path = draw_camera_path(random, (height, width), frame_size, settings.frames)
    pristine = film(photograph, path, frame_size)
    chain = draw_chain(MIXES[plan.part], random)
    (folder / plan.path).write_bytes(degrade(pristine, chain, random))
    content: Content = measure_content(pristine)
    return expected_quality(chain, content, settings.opinion)
