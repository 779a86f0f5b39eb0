"""Runs that seem to have been made: results as the training scripts write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vqa.reproduction.launch import note_of
from vqa.reproduction.runs import PlannedRun
from vqa.store import Store

POSITIONS = [-0.5, 0.0, 0.5]


def document(
    test: float | None = 0.8,
    train: float = 0.9,
    also: Mapping[str, float] | None = None,
    seconds: float = 36.0,
    losses: Sequence[float] = (3.0, 1.0, 2.0),
    sharpness: float = 0.25,
) -> dict[str, object]:
    """A results.json of one split."""
    split = {
        "split": 0,
        "test": scores(test),
        "train": scores(train),
        "validation": None,
        "gap": None if test is None else {"srcc": train - test, "plcc": train - test - 0.01},
        "also": {name: scores(value) for name, value in (also or {}).items()},
        "seconds": seconds / 2,
        "landscape": {
            "positions": POSITIONS,
            "losses": list(losses),
            "sharpness": sharpness,
            "radius": 0.02,
        },
    }
    return {
        "script": "fast_vqa",
        "opinion_scores": "synthetic",
        "settings": {"gamma": 0.0},
        "splits": [split],
        "seconds": seconds,
        "processes": 1,
        "provenance": {"git_revision": "abc123", "device": "cpu", "versions": {}},
    }


def scores(srcc: float | None) -> dict[str, float | None]:
    """Scores of one part; the PLCC is 0.01 above the SRCC."""
    plcc = None if srcc is None else srcc + 0.01
    return {"srcc": srcc, "plcc": plcc, "krcc": srcc, "rmse": 0.5}


def finish(store: Store, run: PlannedRun, **values: object) -> None:
    """Leave what a finished run leaves."""
    store.note(run, note_of(run, ["python", "script.py"]))
    write_results(store.folder(run), run.split, document(**values))  # type: ignore[arg-type]


def write_results(folder: Path, split: int, results: Mapping[str, object]) -> None:
    """Results and chosen weights of a run in its folder."""
    (folder / f"split-{split}").mkdir(parents=True, exist_ok=True)
    (folder / f"split-{split}" / "best.pt").write_bytes(b"weights")
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


def flag(command: Sequence[str], name: str) -> str:
    """What a command line sets a flag to."""
    return command[command.index(name) + 1]


class FakeLauncher:
    """Stands in for processes: remembers commands, and writes results or fails.

    Args:
        fails: which commands do.
    """

    def __init__(self, fails: Callable[[Sequence[str]], bool] = lambda command: False) -> None:
        self.commands: list[list[str]] = []
        self.environments: list[Mapping[str, str]] = []
        self._fails = fails

    def __call__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
        self.commands.append(list(command))
        self.environments.append(environment)
        if self._fails(command):
            log.write_text("first line\nRuntimeError: out of memory\n", encoding="utf-8")
            return 1
        if "--splits" in command:  # a training, not an extraction
            folder, split = Path(flag(command, "--output")), int(flag(command, "--splits"))
            write_results(folder, split, document())
        return 0
