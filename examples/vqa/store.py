"""Runs of training scripts on disk, found by what decides their results."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vqa.io.files import write_json


@dataclass(frozen=True)
class Results:
    """What a finished run left behind in its results.json."""

    file: Path
    document: Mapping[str, Any]

    @property
    def device_seconds(self) -> float:
        """Time of all processes together."""
        split = self.document["splits"][0]
        # A run that was interrupted counts its last session only, but all of its training.
        seconds = max(self.document["seconds"], split["seconds"])
        return float(seconds * self.document.get("processes", 1))

    @property
    def step_seconds(self) -> float:
        """Median time of an optimizer step, without reading its batch."""
        return float(self.document["splits"][0]["median_step_seconds"])

    @property
    def landscape(self) -> Mapping[str, Any]:
        """Positions, losses and sharpness of the loss around the weights; empty if not measured."""
        return self.document["splits"][0]["landscape"] or {}

    @property
    def sharpness(self) -> float:
        """How far the loss rises around the weights; NaN where that is not known."""
        found = self.landscape.get("sharpness")
        return math.nan if found is None else float(found)

    def score(self, part: str, metric: str) -> float:
        """`srcc` or another metric of `train`, `gap` or a further data set; NaN if not defined."""
        split = self.document["splits"][0]
        of_split = part in ("train", "test", "validation", "gap")
        scores = split[part] if of_split else split["also"].get(part)
        if scores is None or metric not in scores:
            raise ValueError(f"{self.file}: expected {metric} of {part!r}, there is none")
        value = scores[metric]
        return math.nan if value is None else float(value)


class Named(Protocol):
    """One call of a training script for one split."""

    @property
    def name(self) -> str:
        """Of its folder; holds a digest of everything that decides the result."""

    @property
    def split(self) -> int: ...


class Store:
    """One folder for each run, in a folder of all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def folder(self, run: Named) -> Path:
        return self._folder / run.name

    def log(self, run: Named) -> Path:
        return self.folder(run) / "log.txt"

    def folder_of_logs(self) -> Path:
        """Where what is not a run prints."""
        folder = self._folder.with_name("logs")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def weights(self, run: Named) -> Path:
        """The chosen weights of a finished run."""
        return self.folder(run) / f"split-{run.split}" / "best.pt"

    def results(self, run: Named) -> Results | None:
        """Results of a finished run; None of any other."""
        return _read(self.folder(run) / "results.json")

    def has_begun(self, run: Named) -> bool:
        """Whether a run was interrupted after its first checkpoint."""
        return (self.folder(run) / f"split-{run.split}" / "last.pt").is_file()

    def note(self, run: Named, document: Mapping[str, object]) -> None:
        """Write down what a folder is for, before anything else is in it."""
        write_json(self.folder(run) / "run.json", document)

    def finished(self) -> list[tuple[Mapping[str, Any], Results, int]]:
        """Every finished run, whoever asked for it: its run.json, its results, its bytes."""
        found = []
        for note in sorted(self._folder.glob("*/run.json")):
            results = _read(note.with_name("results.json"))
            if results is not None:
                size = sum(f.stat().st_size for f in note.parent.rglob("*") if f.is_file())
                found.append((json.loads(note.read_text(encoding="utf-8")), results, size))
        return found


def _read(file: Path) -> Results | None:
    if not file.is_file():
        return None
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        results = Results(file, document)
        results.score("test", "srcc")
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{file}: expected the results of a training script ({error})") from error
    return results
