"""A filled table as Markdown, as lines for a terminal, as CSV rows and as plain values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from vqa.reproduction.cells import FilledCell, FilledTable
from vqa.reproduction.trainings import PlannedRun
from vqa.store import Results, Store

CSV_COLUMNS = (
    "exhibit",
    "row",
    "column",
    "status",
    "measured_mean",
    "measured_spread",
    "seeds",
    "runs",
    "reported",
    "comparable",
    "difference",
    "revisions",
)


def markdown_table(table: FilledTable) -> str:
    """Measured numbers and, where the paper has some, its own in italics below."""
    lines = [
        "| " + " | ".join(("", *table.columns)) + " |",
        "|---" * (len(table.columns) + 1) + "|",
    ]
    for row in table.rows:
        cells = []
        for cell in row.cells:
            reported = f"*{cell.reported_text()}*" if table.has_reported else ""
            cells.append("<br>".join(filter(None, (cell.own_text(), reported))))
        lines.append("| " + " | ".join((row.label, *cells)) + " |")
    return "\n".join(lines)


def terminal_table(table: FilledTable) -> str:
    """The same in columns; the paper's numbers on lines of their own."""
    lines: list[tuple[str, ...]] = [("", *table.columns)]
    for row in table.rows:
        own = tuple(cell.own_text() for cell in row.cells)
        if any(own):
            lines.append((row.label, *own))
        if table.has_reported:
            label = "  paper" if any(own) else f"{row.label}, paper"
            lines.append((label, *(cell.reported_text() for cell in row.cells)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def csv_rows(table: FilledTable, store: Store) -> Iterator[tuple[object, ...]]:
    """A row for every cell, in the order of `CSV_COLUMNS`."""
    for row in table.rows:
        for cell in row.cells:
            found = cell.measured
            runs = () if found is None else found.runs
            yield (
                table.name,
                row.label,
                cell.column,
                cell.status,
                *(("", "") if found is None else (_or_empty(found.mean), _or_empty(found.spread))),
                "" if found is None else " ".join(map(str, found.seeds)),
                " ".join(run.name for run in runs),
                _or_empty(cell.reported),
                cell.comparable,
                _or_empty(cell.difference),
                " ".join(revisions(runs, store)),
            )


def table_document(table: FilledTable, store: Store) -> dict[str, object]:
    """Everything as plain values, with what every measured number was made of."""
    runs = {
        run: None
        for row in table.rows
        for cell in row.cells
        if cell.measured is not None
        for run in cell.measured.runs
    }
    return {
        "name": table.name,
        "title": table.title,
        "rows": [
            {"label": row.label, "cells": [_cell_document(cell) for cell in row.cells]}
            for row in table.rows
        ],
        "runs": {run.name: run_document(run, store) for run in runs},
    }


def run_document(run: PlannedRun, store: Store) -> dict[str, object]:
    """Configuration, seed and origin of a finished run."""
    found = _finished(run, store)
    return {
        "description": run.describe(),
        "seed": run.seed,
        "split": run.split,
        "results": f"runs/{run.name}/{found.file.name}",
        **{
            key: found.document.get(key)
            for key in ("opinion_scores", "settings", "seconds", "processes", "provenance")
        },
    }


def revisions(runs: Iterable[PlannedRun], store: Store) -> list[str]:
    """Git revisions by which finished runs were made."""
    found: dict[str, None] = {}
    for run in runs:
        provenance: Mapping[str, object] = _finished(run, store).document.get("provenance") or {}
        found[str(provenance.get("git_revision") or "unknown")] = None
    return list(found)


def _finished(run: PlannedRun, store: Store) -> Results:
    found = store.results(run)
    if found is None:
        raise ValueError(f"{store.folder(run)}: expected a finished run, it is not")
    return found


def _cell_document(cell: FilledCell) -> dict[str, object]:
    found = cell.measured
    return {
        "column": cell.column,
        "status": cell.status,
        "reported": cell.reported,
        "comparable": cell.comparable,
        "difference": cell.difference,
        "measured": None
        if found is None
        else {
            "mean": found.mean,
            "spread": found.spread,
            "seeds": found.seeds,
            "values": found.values,
            "runs": [run.name for run in found.runs],
            "needed_runs": found.needed,
        },
    }


def _or_empty(value: float | None) -> object:
    return "" if value is None or math.isnan(value) else value
