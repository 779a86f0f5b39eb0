"""Scores and landscapes of finished runs, put together as a table or a figure shows them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vqa.reproduction.catalogue import Cell, Curve
from vqa.reproduction.sweep import Sweep
from vqa.reproduction.trainings import PlannedRun, Training
from vqa.statistics import summarise
from vqa.store import Results, Store


@dataclass(frozen=True)
class Measured:
    """One number over seeds; of each seed it is the median over splits."""

    seeds: tuple[int, ...]
    """Those of which every split is finished."""
    values: tuple[float, ...]
    """One for each of them; NaN where a score was not defined."""
    runs: tuple[PlannedRun, ...]
    """Finished ones, those of incomplete seeds too."""
    needed: int
    """Runs for all seeds."""

    @property
    def mean(self) -> float | None:
        """Over seeds; None as long as there is no complete one."""
        return summarise(self.values).mean if self.values else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over seeds; None for fewer than two."""
        return summarise(self.values).spread if len(self.values) > 1 else None


def measured_cell(cell: Cell, sweep: Sweep, store: Store) -> Measured | None:
    """What is known of a cell; None if it is cited."""
    if cell.training is None:
        return None
    part = sweep.data.part(cell.part)
    return _over_seeds(cell.training, sweep, store, lambda found: found.score(part, cell.metric))


def measured_sharpness(curve: Curve, sweep: Sweep, store: Store) -> Measured:
    """How sharp the loss around a curve's models is."""
    return _over_seeds(curve.training, sweep, store, lambda found: found.sharpness)


def measured_score(curve: Curve, part: str, metric: str, sweep: Sweep, store: Store) -> Measured:
    """A score of a curve's models."""
    return _over_seeds(curve.training, sweep, store, lambda found: found.score(part, metric))


def rises(curve: Curve, sweep: Sweep, store: Store) -> tuple[list[float], list[list[float]]] | None:
    """How far the loss of every finished run rises along its direction.

    Returns:
        Positions [A], and losses minus the one of the weights themselves [runs, A]; None if no run
        is finished.
    """
    landscapes = [
        found.landscape
        for run in sweep.runs(curve.training)
        if (found := store.results(run)) is not None and found.landscape
    ]
    if not landscapes:
        return None
    positions = list(map(float, landscapes[0]["positions"]))
    centre = min(range(len(positions)), key=lambda place: abs(positions[place]))
    losses = [_floats(own["losses"]) for own in landscapes]
    return positions, [[loss - own[centre] for loss in own] for own in losses]


def _floats(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]


def _over_seeds(
    training: Training, sweep: Sweep, store: Store, value: Callable[[Results], float]
) -> Measured:
    runs = sweep.runs(training)
    found = {run: results for run in runs if (results := store.results(run)) is not None}
    complete = [
        seed for seed in sweep.seeds if all(run in found for run in runs if run.seed == seed)
    ]
    values = [
        statistics.median(value(found[run]) for run in runs if run.seed == seed)
        for seed in complete
    ]
    return Measured(tuple(complete), tuple(values), tuple(found), len(runs))
