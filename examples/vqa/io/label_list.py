"""Label lists in the four-column format of FAST-VQA: `path, duration, fps, mos`, no header."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class DatasetError(ValueError):
    """A data set cannot be used; the message names the file and, where there is one, the row."""


@dataclass(frozen=True)
class LabelledVideo:
    """One row; duration, frame rate and score are -1 where unknown."""

    path: str  # relative to the list's folder
    duration: float  # seconds
    frame_rate: float
    score: float


def write_label_list(path: Path, videos: Sequence[LabelledVideo]) -> None:
    rows = (f"{v.path}, {v.duration!r}, {v.frame_rate!r}, {v.score!r}\n" for v in videos)
    path.write_text("".join(rows), encoding="utf-8")


def read_label_list(path: Path) -> list[LabelledVideo]:
    """Read a label list and check every row, but not the videos."""
    try:
        # Many editors end a file with an empty line.
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: expected a readable UTF-8 label list ({error})") from error
    videos = [_parse(line, f"{path}, row {row}") for row, line in enumerate(lines, start=1)]
    if not videos:
        raise DatasetError(f"{path}: expected at least one row, the list is empty")
    return videos


def _parse(line: str, place: str) -> LabelledVideo:
    name, *cells = (cell.strip() for cell in line.split(","))
    if len(cells) != 3 or not name:
        raise DatasetError(
            f"{place}: expected 'path, duration, fps, mos', got {line!r} (cells are divided by"
            " commas; --dataset csv takes other tables of names and scores)"
        )
    numbers = []
    for cell in cells:
        number = finite_number(cell)
        if number is None:
            raise DatasetError(f"{place}: expected a finite number, got {cell!r}")
        numbers.append(number)
    return LabelledVideo(name, *numbers)


def finite_number(text: str) -> float | None:
    """A number as annotation files have it, such as -1, 3.5 or 2e-3; None if it is no such."""
    if "_" in text or not text.isascii():  # `float` takes 1_5 and digits of other scripts, too
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
