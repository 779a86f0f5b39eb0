"""What a data set is once it is loaded: files, opinion scores and parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vqa.io.media_names import MediaKind

Part = Literal["train", "validation", "test", "1080p", "ood"]


class DatasetError(ValueError):
    """A data set cannot be used; the message names the file and, where there is one, the row."""


@dataclass(frozen=True)
class Sample:
    """One file and its mean opinion score.

    `part` is the official one, None where a data set has no official parts.
    """

    path: Path
    score: float
    part: Part | None = None


@dataclass(frozen=True)
class DataSet:
    """Labelled files in the order of their annotation files."""

    name: str
    kind: MediaKind
    samples: tuple[Sample, ...]
    source: Path
    """The (first) annotation file."""
    synthetic: bool = False
    """Whether the scores are computed rather than given by people."""
    dropped: int = 0
    """Listed files that are missing and were left out."""
    unrated: int = 0
    """Listed files whose score is unknown and that were left out."""
