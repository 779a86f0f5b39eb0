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
    """Read a label list and check every row and that every video exists, beside the list."""
    videos = parse_label_list(path)
    files = enumerate((path.parent / video.path for video in videos), start=1)
    missing = [(row, file) for row, file in files if not file.is_file()]
    if missing:
        row, file = missing[0]
        raise DatasetError(
            f"{path}, row {row}: expected the video {file}, there is no such file"
            f" ({len(missing)} of {len(videos)} videos are missing)"
        )
    return videos


def parse_label_list(path: Path) -> list[LabelledVideo]:
    """Read a label list and check every row, but not whether the videos exist."""
    try:
        # Many editors end a file with an empty line.
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: expected a readable UTF-8 label list ({error})") from error
    videos: list[LabelledVideo] = []
    rows: dict[str, int] = {}
    for row, line in enumerate(lines, start=1):
        video = _parse(line, f"{path}, row {row}")
        if video.path in rows:
            raise DatasetError(
                f"{path}, row {row}: expected every video once, {video.path} is in row"
                f" {rows[video.path]} too"
            )
        rows[video.path] = row
        videos.append(video)
    if not videos:
        raise DatasetError(f"{path}: expected at least one row, the list is empty")
    return videos


def _parse(line: str, place: str) -> LabelledVideo:
    columns = line.split(",")
    if len(columns) != 4 or not columns[0].strip():
        raise DatasetError(
            f"{place}: expected 'path, duration, fps, mos', got {line!r} (cells are divided by"
            " commas; --dataset csv takes other tables of names and scores)"
        )
    duration, frame_rate, score = (_number(text, place) for text in columns[1:])
    return LabelledVideo(columns[0].strip(), duration, frame_rate, score)


def _number(text: str, place: str) -> float:
    try:
        value = parse_number(text)
    except ValueError:
        raise DatasetError(f"{place}: expected a number, got {text.strip()!r}") from None
    if not math.isfinite(value):
        raise DatasetError(f"{place}: expected a finite number, got {text.strip()!r}")
    return value


def parse_number(text: str) -> float:
    """A number as annotation files have it, such as -1, 3.5 or 2e-3; may be nan or infinite."""
    if "_" in text or not text.isascii():  # `float` takes 1_5 and digits of other scripts, too
        raise ValueError(f"text: expected a number, got {text!r}")
    return float(text)
