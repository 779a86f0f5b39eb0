"""mini-IQA: a small offline set of images with *synthetic* opinion scores.

A view of a real photograph goes through a chain of degradations that ends in a real JPEG encoder,
and simulated raters score it (`vqa.synthetic.opinion`), as in mini-UGC. Its parts `train` and
`test` have the same mix of degradations and no photograph in common.

On disk: `images/<image>.jpg`, `labels.csv` with the columns image_name, mos and split, and
`mini_iqa.json`, which says how the set was made.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vqa.io.files import write_csv
from vqa.synthetic.generated_folder import GeneratedFolder
from vqa.synthetic.mini_ugc import Filmed, Mix, write_all
from vqa.synthetic.opinion import Opinion
from vqa.synthetic.photographs import PHOTOGRAPHS, photographs_of

# As those of mini-UGC.
VERSION = 1
DEFAULT_FOLDER = Path(__file__).resolve().parents[3] / "data" / "mini-iqa"

MIX = Mix(kinds=("rescale", "blur", "noise", "exposure", "fading", "jpeg"), deliveries=("jpeg",))

_FOLDER = GeneratedFolder("mini-IQA", "mini_iqa.json")
is_mini_iqa = _FOLDER.is_complete


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


def _write_images(folder: Path, settings: MiniIqaSettings) -> None:
    files = list(_files(settings))
    scores = write_all("mini-IQA", files, folder, settings.seed)
    rows = [
        (Path(file.path).name, score, file.photograph.part)
        for file, score in zip(files, scores, strict=True)
    ]
    write_csv(folder / "labels.csv", ("image_name", "mos", "split"), rows)


def _files(settings: MiniIqaSettings) -> Iterator[Filmed]:
    size = (settings.height, settings.width)
    for part, images in (("train", settings.train_images), ("test", settings.test_images)):
        for photograph in photographs_of(part, settings.photographs):
            for number in range(images):
                path = f"images/{photograph.name}_{number:02d}.jpg"
                seed = (settings.seed, PHOTOGRAPHS.index(photograph), number)
                yield Filmed(path, photograph, size, 1, MIX, settings.opinion, seed)
