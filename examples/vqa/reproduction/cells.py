"""Tables and figures with their measured numbers, ready to be written in any form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vqa.reproduction.catalogue import Curve, Exhibit, LossFigure, Table
from vqa.reproduction.measured import (
    Measured,
    measured_cell,
    measured_score,
    measured_sharpness,
)
from vqa.reproduction.sweep import Sweep
from vqa.store import Store

Status = Literal["measured", "not measured", "cited"]


@dataclass(frozen=True)
class FilledCell:
    """One number of a table beside the paper's."""

    column: str
    reported: float | None
    measured: Measured | None
    comparable: bool
    """Whether the two were measured on the same data."""

    @property
    def status(self) -> Status:
        """Whether there is a number, and whether there ever will be one."""
        if self.measured is None:
            return "cited"
        return "not measured" if self.measured.mean is None else "measured"

    @property
    def difference(self) -> float | None:
        """Measured minus reported; None where they do not compare."""
        mean = None if self.measured is None else self.measured.mean
        if mean is None or self.reported is None or not self.comparable:
            return None
        return mean - self.reported

    def own_text(self) -> str:
        """What was measured, and the difference to the paper."""
        if self.measured is None:
            return ""
        mean, spread, found = self.measured.mean, self.measured.spread, self.measured
        if mean is None:
            progress = f" ({len(found.runs)}/{found.needed} runs)" if found.runs else ""
            return f"not measured{progress}"
        if math.isnan(mean):
            return "undefined"
        some = "" if len(found.runs) == found.needed else f" [{len(found.seeds)} seeds]"
        difference = "" if self.difference is None else f" ({self.difference:+.3f})"
        return f"{mean:.3f}{'' if spread is None else f' ± {spread:.3f}'}{difference}{some}"

    def reported_text(self) -> str:
        """The paper's number."""
        return "-" if self.reported is None else f"{self.reported:.3f}"


@dataclass(frozen=True)
class FilledRow:
    """One line."""

    label: str
    cells: tuple[FilledCell, ...]


@dataclass(frozen=True)
class FilledTable:
    """A table, or what is written beside a figure."""

    name: str
    title: str
    rows: tuple[FilledRow, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Heads of the columns after the first."""
        return tuple(cell.column for cell in self.rows[0].cells)

    @property
    def has_reported(self) -> bool:
        """Whether the paper has numbers here."""
        return any(cell.reported is not None for row in self.rows for cell in row.cells)


def fill(exhibit: Exhibit, sweep: Sweep, store: Store) -> FilledTable:
    """Look up what was measured for a table, or for the curves of a figure."""
    rows = (
        _table_rows(exhibit, sweep, store)
        if isinstance(exhibit, Table)
        else _figure_rows(exhibit, sweep, store)
    )
    return FilledTable(exhibit.name, exhibit.title, tuple(rows))


def _table_rows(table: Table, sweep: Sweep, store: Store) -> Sequence[FilledRow]:
    comparable = sweep.data.comparable
    return [
        FilledRow(
            row.label,
            tuple(
                FilledCell(
                    cell.column, cell.reported, measured_cell(cell, sweep, store), comparable
                )
                for cell in row.cells
            ),
        )
        for row in table.rows
    ]


def _figure_rows(figure: LossFigure, sweep: Sweep, store: Store) -> Sequence[FilledRow]:
    return [
        FilledRow(f"{panel.title}: {curve.label}", _curve_cells(curve, sweep, store))
        for panel in figure.panels
        for curve in panel.curves
    ]


def _curve_cells(curve: Curve, sweep: Sweep, store: Store) -> tuple[FilledCell, ...]:
    numbers = {
        "sharpness": measured_sharpness(curve, sweep, store),
        "gap SRCC": measured_score(curve, "gap", "srcc", sweep, store),
        "test SRCC": measured_score(curve, "test", "srcc", sweep, store),
    }
    return tuple(FilledCell(name, None, found, False) for name, found in numbers.items())
