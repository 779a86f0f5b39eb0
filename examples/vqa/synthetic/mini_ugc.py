"""mini-UGC: a small offline data set of real .mp4 files with *synthetic* opinion scores.

A camera moves over real photographs, the clip goes through a chain of degradations that ends in a
real H.264 or MPEG-4 encoder, and simulated raters score it (`vqa.synthetic.opinion`). Three parts:

* `train` and `test`: the same mix of degradations, no photograph in common;
* `ood` (out of domain): the test photographs under a second mix.

On disk: `<part>/<clip>.mp4`, the label lists `<part>.txt` and `mini_ugc.json`, which says how the
set was made.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from vqa.processes import process_pool, progress_bar
from vqa.synthetic.degradations import FRAME_RATE, Chain, Link, degrade
from vqa.synthetic.generated_folder import GeneratedFolder
from vqa.synthetic.opinion import Opinion, expected_quality, measure_content, rate
from vqa.synthetic.photographs import (
    PHOTOGRAPHS,
    Photograph,
    draw_camera_path,
    film,
    load_photograph,
    photographs_of,
)

# Raise it when the same settings would give other files or scores: caches are then rebuilt.
VERSION = 1

# Where the examples build it and look for it unless told otherwise; git ignores it.
DEFAULT_FOLDER = Path(__file__).resolve().parents[3] / "data" / "mini-ugc"

_FOLDER = GeneratedFolder("mini-UGC", "mini_ugc.json")
is_mini_ugc = _FOLDER.is_complete


@dataclass(frozen=True)
class Mix:
    """Degradations that a part draws from, and the encoders that deliver its clips."""

    kinds: tuple[str, ...]
    deliveries: tuple[str, ...]


_FIRST_MIX = Mix(
    kinds=("rescale", "blur", "noise", "exposure", "frozen", "mpeg4"), deliveries=("h264", "mpeg4")
)
_SECOND_MIX = Mix(
    kinds=("rescale", "motion_blur", "noise", "fading", "stutter", "h264"), deliveries=("h264",)
)
MIXES = {"train": _FIRST_MIX, "test": _FIRST_MIX, "ood": _SECOND_MIX}
PARTS = tuple(MIXES)


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


def build_mini_ugc(folder: Path, settings: MiniUgcSettings, processes: int = 1) -> bool:
    """Build the set unless it is there already, made the same way: as `GeneratedFolder.build`.

    The result does not depend on how many processes encode clips.
    """
    record = {"version": VERSION, "settings": asdict(settings)}
    return _FOLDER.build(folder, record, lambda empty: _write_parts(empty, settings, processes))


def draw_chain(mix: Mix, random: np.random.Generator) -> Chain:
    """Draw a chain: none to two degradations, then an encoder that is generous half of the time."""
    count = int(random.choice(3, p=(0.25, 0.5, 0.25)))
    kinds = random.choice(len(mix.kinds), size=count, replace=False)
    links = tuple(Link(mix.kinds[kind], float(random.uniform(0.1, 1.0))) for kind in kinds)
    delivery = mix.deliveries[int(random.integers(len(mix.deliveries)))]
    strength = float(random.uniform(0.1, 1.0)) if random.random() < 0.5 else 0.05
    return (*links, Link(delivery, strength))


@dataclass(frozen=True)
class Filmed:
    """A file of a set: what is filmed how long and in what size, and what happens to it."""

    path: str
    photograph: Photograph
    size: tuple[int, int]
    frames: int
    mix: Mix
    opinion: Opinion
    seed: tuple[int, ...]  # of its own, so that files can be made in any order and in parallel


def write_all(
    title: str, files: Sequence[Filmed], folder: Path, seed: int, processes: int = 1
) -> list[float]:
    """Write files into a folder; their mean opinion scores, by raters drawn from the seed."""
    qualities: list[float] = []
    write = partial(_write, folder)
    in_parallel = process_pool(processes) if processes > 1 else nullcontext()
    with progress_bar(title, len(files), "file") as bar, in_parallel as pool:
        made = pool.map(write, files, chunksize=8) if pool else map(write, files)
        for quality in made:
            qualities.append(quality)
            bar.update()
    return [float(mos) for mos in rate(qualities, files[0].opinion, np.random.default_rng(seed))]


def _write(folder: Path, file: Filmed) -> float:
    random = np.random.default_rng(file.seed)
    photograph = load_photograph(file.photograph)
    path = draw_camera_path(random, photograph.shape[:2], file.size, file.frames)
    clip = film(photograph, path, file.size)
    chain = draw_chain(file.mix, random)
    (folder / file.path).parent.mkdir(exist_ok=True)
    (folder / file.path).write_bytes(degrade(clip, chain, random))
    return expected_quality(chain, measure_content(clip), file.opinion)


def _write_parts(folder: Path, settings: MiniUgcSettings, processes: int) -> None:
    files = list(_files(settings))
    scores = write_all("mini-UGC", files, folder, settings.seed, processes)
    length = f"{settings.frames / FRAME_RATE!r}, {float(FRAME_RATE)!r}"  # seconds, frames a second
    rows = [f"{own.path}, {length}, {mos!r}\n" for own, mos in zip(files, scores, strict=True)]
    for part in PARTS:
        text = "".join(row for row in rows if row.startswith(f"{part}/"))
        (folder / f"{part}.txt").write_text(text, encoding="utf-8")


def _files(settings: MiniUgcSettings) -> Iterator[Filmed]:
    size = (settings.height, settings.width)
    for place, (part, mix) in enumerate(MIXES.items()):
        clips = settings.train_clips if part == "train" else settings.test_clips
        of_part = photographs_of("train" if part == "train" else "test", settings.photographs)
        for photograph in of_part:
            for number in range(clips):
                path = f"{part}/{photograph.name}_{number:02d}.mp4"
                seed = (settings.seed, place, PHOTOGRAPHS.index(photograph), number)
                yield Filmed(path, photograph, size, settings.frames, mix, settings.opinion, seed)
