"""mini-IQA: a small offline set of images with *synthetic* opinion scores.

A view of a real photograph goes through a chain of degradations that ends in a real JPEG encoder,
and simulated raters score it (`vqa.synthetic.opinion`), as in mini-UGC. Its parts `train` and
`test` have the same mix of degradations and no photograph in common.

On disk: `images/<image>.jpg`, `labels.csv` with the columns image_name, mos and split, and
`mini_iqa.json`, which says how the set was made.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vqa.io.files import write_csv
from vqa.processes import progress_bar
from vqa.synthetic.degradations import degrade_still
from vqa.synthetic.generated_folder import GeneratedFolder
from vqa.synthetic.mini_ugc import Mix, draw_chain
from vqa.synthetic.opinion import Opinion, expected_quality, measure_content, rate
from vqa.synthetic.photographs import (
    PHOTOGRAPHS,
    draw_camera_path,
    film,
    load_photograph,
    photographs_of,
)

Pixels = NDArray[np.uint8]

# Raise it when the same settings would give other files or scores: caches are then rebuilt.
VERSION = 1

# Where the examples build it and look for it unless told otherwise; git ignores it.
DEFAULT_FOLDER = Path(__file__).resolve().parents[3] / "data" / "mini-iqa"

MIX = Mix(kinds=("rescale", "blur", "noise", "exposure", "fading", "jpeg"), deliveries=("jpeg",))

_FOLDER = GeneratedFolder("mini-IQA", "mini_iqa.json")


@dataclass(frozen=True)
class MiniIqaSettings:
    """What to build. Images are made per photograph, so that every content weighs the same."""

    seed: int = 2025
    """Decides views, chains, noise and raters."""
    height: int = 160
    width: int = 192
    photographs: int | None = None
    """Use only the first so many photographs of each part (None: all of them)."""
    train_images: int = 17
    """Training images per photograph."""
    test_images: int = 15
    """Test images per photograph."""
    opinion: Opinion = field(default_factory=Opinion)


def build_mini_iqa(folder: Path, settings: MiniIqaSettings) -> bool:
    """Build the set unless it is there already, made the same way: as `GeneratedFolder.build`."""
    record = {"version": VERSION, "settings": asdict(settings)}
    return _FOLDER.build(folder, record, lambda empty: _write_images(empty, settings))


def is_mini_iqa(folder: Path) -> bool:
    """Whether a complete set, however made, is in the folder."""
    return _FOLDER.is_complete(folder)


def _write_images(folder: Path, settings: MiniIqaSettings) -> None:
    (folder / "images").mkdir()
    named: list[tuple[str, str]] = []
    qualities: list[float] = []
    photographs = [
        *photographs_of("train", settings.photographs),
        *photographs_of("test", settings.photographs),
    ]
    with progress_bar("mini-IQA", len(photographs), "photograph") as bar:
        for photograph in photographs:
            pixels = load_photograph(photograph)
            of_train = photograph.part == "train"
            for number in range(settings.train_images if of_train else settings.test_images):
                name = f"{photograph.name}_{number:02d}.jpg"
                place = (PHOTOGRAPHS.index(photograph), number)
                random = np.random.default_rng((settings.seed, *place))
                quality = _make_image(pixels, folder / "images" / name, settings, random)
                named.append((name, photograph.part))
                qualities.append(quality)
            bar.update()
    scores = rate(qualities, settings.opinion, np.random.default_rng(settings.seed))
    rows = [(name, float(own), part) for (name, part), own in zip(named, scores, strict=True)]
    write_csv(folder / "labels.csv", ("image_name", "mos", "split"), rows)


def _make_image(
    photograph: Pixels, path: Path, settings: MiniIqaSettings, random: np.random.Generator
) -> float:
    """Write one image; the quality that its raters perceive."""
    size = (settings.height, settings.width)
    height, width = photograph.shape[:2]
    view = film(photograph, draw_camera_path(random, (height, width), size, frames=1), size)
    chain = draw_chain(MIX, random)
    path.write_bytes(degrade_still(view[0], chain, random))
    # Shown twice, because what stands still does not move.
    content = measure_content(np.repeat(view, 2, axis=0))
    return expected_quality(chain, content, settings.opinion)
