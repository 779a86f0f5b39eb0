"""Finished trainings, each kept as a file, so that a benchmark goes on where it stopped."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.fine_tuning.studies import Values
from benchmarks.generalization_grounds.ground import HeldOut
from finetune_image_quality import Finetuning
from vqa.io.files import digest, replacing
from vqa.metrics import Agreement, agreement

# Raise it when the same settings would give other scores.
_VERSION = 1
_CAME_LATER: Values = {"perturb_last": 1.0, "interval": 1, "clip": 0.0}
_NO_MATTER = ("data_root", "annotations", "output")


@dataclass(frozen=True)
class Training:
    """What decides a run."""

    settings: Finetuning
    held: HeldOut
    """What it is scored on: images left out of the training part, or the test part."""
    photographs: Mapping[str, Sequence[str]] | None = None
    """As of a study."""

    @property
    def described(self) -> dict[str, Any]:
        """What a run is known by: no folders, and what came after the first where it matters."""
        values = {"dataset": "csv", **asdict(self.settings)}  # the script once took other lists
        for name in _NO_MATTER:
            del values[name]
        for name, without in _CAME_LATER.items():
            if values[name] == without:
                del values[name]
        return values if self.photographs is None else {**values, "photographs": self.photographs}

    @property
    def file(self) -> str:
        """Name of the file of its run."""
        decides = {"version": _VERSION, "held": self.held, **self.described}
        return f"{self.settings.perturb}-{self.settings.seed}-{digest(decides)[:12]}.json"


@dataclass(frozen=True)
class Run:
    """One finished training."""

    settings: Values
    """The training script's, folders aside."""
    held: HeldOut
    predicted: tuple[float, ...]
    """Scores of the held images with BatchNorm's statistics as trained."""
    predicted_clean: tuple[float, ...]
    """And with statistics taken anew at the final weights."""
    opinion: tuple[float, ...]
    train_srcc: float
    epoch: int
    history: Sequence[Mapping[str, float]]
    cpu_seconds: float
    provenance: Mapping[str, object]

    @property
    def agreement(self) -> Agreement:
        """With the opinion scores; NaN where a training diverged."""
        return agreement_of(self.predicted, self.opinion)


def agreement_of(predicted: Sequence[float], scores: Sequence[float]) -> Agreement:
    """Agreement of predictions [N] with opinion scores [N]; NaN where the training diverged."""
    try:
        return agreement(predicted, scores)
    except ValueError:
        return Agreement(math.nan, math.nan, math.nan, math.nan)


def save_run(folder: Path, training: Training, run: Run) -> None:
    """Keep a finished run."""
    with replacing(folder / training.file) as unfinished:
        unfinished.write_text(json.dumps(asdict(run)) + "\n", encoding="utf-8")


def load_run(folder: Path, training: Training) -> Run | None:
    """A finished run of this training, whatever the versions; None if there is none."""
    try:
        return Run(**json.loads((folder / training.file).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
