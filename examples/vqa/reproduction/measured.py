"""Scores and landscapes of finished runs, put together as a table or a figure shows them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from vqa.metrics import summarise
from vqa.reproduction.catalogue import Cell, Exhibit
from vqa.reproduction.runs import PlannedRun, Sweep
from vqa.store import Results, Store

Status = Literal["measured", "not measured", "cited"]


@dataclass(frozen=True)
class MeasuredCell:
    """One number over seeds, beside the paper's; of each seed it is the median over splits."""

    cell: Cell
    comparable: bool
    """Whether the two were measured on the same data."""
    seeds: tuple[int, ...] = ()
    """Those of which every split is finished."""
    values: tuple[float, ...] = ()
    """One for each of them; NaN where a score was not defined."""
    runs: tuple[PlannedRun, ...] = ()
    """Finished ones, those of incomplete seeds too."""
    needed: int = 0
    """Runs for all seeds."""

    @property
    def mean(self) -> float | None:
        """Over seeds; None as long as there is no complete one."""
        return summarise(self.values).mean if self.values else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over seeds; None for fewer than two."""
        return summarise(self.values).spread if len(self.values) > 1 else None

    @property
    def status(self) -> Status:
        """Whether there is a number, and whether there ever will be one."""
        if self.cell.training is None:
            return "cited"
        return "not measured" if self.mean is None else "measured"

    @property
    def difference(self) -> float | None:
        """Measured minus reported; None where they do not compare."""
        if self.mean is None or self.cell.reported is None or not self.comparable:
            return None
        return self.mean - self.cell.reported

    def text(self) -> str:
        """What was measured, and the difference to the paper."""
        if self.status == "cited":
            return ""
        if self.mean is None:
            progress = f" ({len(self.runs)}/{self.needed} runs)" if self.runs else ""
            return f"not measured{progress}"
        if math.isnan(self.mean):
            return "undefined"
        spread = "" if self.spread is None else f" ± {self.spread:.3f}"
        difference = "" if self.difference is None else f" ({self.difference:+.3f})"
        some = "" if len(self.runs) == self.needed else f" [{len(self.seeds)} seeds]"
        return f"{self.mean:.3f}{spread}{difference}{some}"

    def reported_text(self) -> str:
        """The paper's number."""
        return "-" if self.cell.reported is None else f"{self.cell.reported:.3f}"


@dataclass(frozen=True)
class MeasuredTable:
    """A table, or what is written beside a figure."""

    exhibit: Exhibit
    cells: tuple[MeasuredCell, ...]

    @property
    def rows(self) -> dict[str, list[MeasuredCell]]:
        """The cells of every row, by its name."""
        by_row = groupby(self.cells, key=lambda own: own.cell.row)
        return {row: list(cells) for row, cells in by_row}

    @property
    def columns(self) -> tuple[str, ...]:
        """Heads of the columns after the first."""
        return tuple(dict.fromkeys(own.cell.column for own in self.cells))

    @property
    def has_reported(self) -> bool:
        """Whether the paper has numbers here."""
        return any(own.cell.reported is not None for own in self.cells)

    @property
    def runs(self) -> tuple[PlannedRun, ...]:
        """Every finished run behind a number."""
        return tuple(dict.fromkeys(run for own in self.cells for run in own.runs))


def measured_table(exhibit: Exhibit, sweep: Sweep, store: Store) -> MeasuredTable:
    """Look up what was measured for a table, or for the curves of a figure."""
    return MeasuredTable(exhibit, tuple(_measured(cell, sweep, store) for cell in exhibit.cells))


def _measured(cell: Cell, sweep: Sweep, store: Store) -> MeasuredCell:
    comparable = sweep.data.comparable and not cell.panel
    if cell.training is None:
        return MeasuredCell(cell, comparable)
    runs = sweep.runs(cell.training)
    found = finished(runs, store)
    seeds, values = [], []
    for seed in sweep.seeds:
        of_seed = [run for run in runs if run.seed == seed]
        if all(run in found for run in of_seed):
            seeds.append(seed)
            values.append(statistics.median(_value(found[run], cell, sweep) for run in of_seed))
    return MeasuredCell(cell, comparable, tuple(seeds), tuple(values), tuple(found), len(runs))


def _value(results: Results, cell: Cell, sweep: Sweep) -> float:
    if cell.metric == "sharpness":
        return results.sharpness
    return results.score(sweep.data.part(cell.part), cell.metric)


def finished(runs: Iterable[PlannedRun], store: Store) -> dict[PlannedRun, Results]:
    """The results of those runs that have some."""
    found = {run: store.results(run) for run in runs}
    return {run: results for run, results in found.items() if results is not None}


def rises(results: Iterable[Results]) -> tuple[Sequence[float], list[list[float]]] | None:
    """How far the loss of runs rises along their directions.

    Returns:
        Positions [A], and losses minus the one of the weights themselves [runs, A]; None if no run
        has a landscape.
    """
    landscapes = [own.landscape for own in results if own.landscape]
    if not landscapes:
        return None
    positions = [float(position) for position in landscapes[0]["positions"]]
    centre = min(range(len(positions)), key=lambda place: abs(positions[place]))
    losses = [
        [math.nan if loss is None else float(loss) for loss in own["losses"]] for own in landscapes
    ]
    return positions, [[loss - own[centre] for loss in own] for own in losses]
