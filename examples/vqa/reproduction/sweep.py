"""From what tables ask for to runs: seeds, splits, and settings that hold for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from vqa.reproduction.catalogue import Exhibit, Table
from vqa.reproduction.data_choice import DataChoice, has_one_split
from vqa.reproduction.trainings import LANDSCAPE_POINTS, PlannedRun, Training

Selection = Literal["validation", "test", "last"]


@dataclass(frozen=True)
class Sweep:
    """What all runs of a reproduction have in common."""

    data: DataChoice
    seeds: tuple[int, ...] = (42,)
    splits: tuple[int, ...] | None = None
    """Instead of every table's own."""
    select_on: Selection = "validation"
    """Which scores choose the epoch."""
    flags: tuple[str, ...] = ()
    """Further settings of every run."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Of files that decide results: pretrained weights by script, data sets by name."""

    def runs(self, asked: Training) -> tuple[PlannedRun, ...]:
        """Every run behind a training: seed by seed, split by split."""
        training = self.data.training(asked)
        splits = (0,) if has_one_split(training.dataset) else self.splits or training.splits
        return tuple(self._run(training, seed, split) for seed in self.seeds for split in splits)

    def _run(self, training: Training, seed: int, split: int) -> PlannedRun:
        start = None if training.start is None else self._run(training.start, seed, 0)
        common = ("--select-on", self.select_on, "--landscape-points", str(LANDSCAPE_POINTS))
        names = [training.dataset, *training.also_test]
        names += [training.script] if start is None else []
        names += ["slowfast"] if training.script == "simple_vqa" else []
        return PlannedRun(
            script=training.script,
            preset=training.preset,
            dataset=training.dataset,
            flags=(*training.flags, *common, *self.flags),
            also_test=training.also_test,
            seed=seed,
            split=split,
            start=start,
            digests=tuple((name, self.digests[name]) for name in names if name in self.digests),
        )


def labelled_trainings(exhibit: Exhibit) -> Iterator[tuple[str, Training]]:
    """Every training of a table or figure with the label of its row or curve."""
    if isinstance(exhibit, Table):
        for row in exhibit.rows:
            for cell in row.cells:
                if cell.training is not None:
                    yield row.label, cell.training
        return
    for panel in exhibit.panels:
        for curve in panel.curves:
            yield curve.label, curve.training


def needed_datasets(exhibits: Sequence[Exhibit], sweep: Sweep) -> tuple[str, ...]:
    """Names of the data sets that any row or curve trains or tests on."""
    runs = needed_runs(exhibits, sweep)
    return tuple(dict.fromkeys(name for run in runs for name in (run.dataset, *run.also_test)))


def check_labels(exhibits: Sequence[Exhibit], only: Sequence[str]) -> None:
    """Raise a ValueError if no row or curve that can be run has one of the labels."""
    labels = dict.fromkeys(
        label for exhibit in exhibits for label, _ in labelled_trainings(exhibit)
    )
    for label in only:
        if label not in labels:
            raise ValueError(
                f"only: expected some of {', '.join(map(repr, labels))}, got {label!r}"
            )


def needed_runs(
    exhibits: Sequence[Exhibit], sweep: Sweep, only: Sequence[str] = ()
) -> tuple[PlannedRun, ...]:
    """Runs that tables and figures need, each once, after the one that it starts from.

    Args:
        exhibits: the tables and figures.
        sweep: how to run them.
        only: labels of rows and curves; every one if empty.
    """
    runs: dict[PlannedRun, None] = {}
    for exhibit in exhibits:
        for label, training in labelled_trainings(exhibit):
            if not only or label in only:
                for run in sweep.runs(training):
                    runs.update(dict.fromkeys(_chain(run)))
    return tuple(runs)


def shard(runs: Sequence[PlannedRun], number: int, of: int) -> tuple[PlannedRun, ...]:
    """The share of one of several machines, numbered from 1.

    Runs that start from one another stay together.
    """
    roots = {root: place for place, root in enumerate(dict.fromkeys(run.root for run in runs))}
    return tuple(run for run in runs if roots[run.root] % of == number - 1)


def _chain(run: PlannedRun) -> tuple[PlannedRun, ...]:
    return (run,) if run.start is None else (*_chain(run.start), run)
