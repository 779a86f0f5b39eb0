"""Markdown, CSV, JSON and pictures of tables and figures, whatever part of them is measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from vqa.figures import draw_curves
from vqa.io.files import replacing, write_csv, write_json
from vqa.reproduction.catalogue import Exhibit
from vqa.reproduction.launch import Failure
from vqa.reproduction.measured import (
    MeasuredCell,
    MeasuredTable,
    finished,
    measured_table,
    rises,
)
from vqa.reproduction.runs import PlannedRun, Sweep
from vqa.store import Results, Store

_WIDTH, _HEIGHT = 4.4, 4.6  # inches of a figure's panel
_NOT_COMPARABLE = "mini-UGC, synthetic scores: not comparable with the paper's column."
_CHOSEN = {
    "validation": "Epochs are chosen on a validation part of the training samples.",
    "test": "Epochs are chosen on the test part, as in the published code, so scores are too high.",
    "last": "Every score is that of the last epoch.",
}


def write_report(
    folder: Path,
    exhibits: Sequence[Exhibit],
    sweep: Sweep,
    store: Store,
    failures: Sequence[Failure] = (),
    settings: Mapping[str, object] | None = None,
) -> list[Path]:
    """Write every table and figure into files of its own, and all of them into report.md.

    With the runs that failed just now, and for the JSON files the settings of the command.
    """
    paths, sections = [], [_introduction(sweep)]
    for exhibit in exhibits:
        table = measured_table(exhibit, sweep, store)
        results = finished(table.runs, store)
        picture = folder / f"{exhibit.name}.png"
        drawn = _draw(exhibit, sweep, store, picture)
        sections.append(_section(table, results, picture.name if drawn else None))
        own = [folder / f"{exhibit.name}.{kind}" for kind in ("md", "csv", "json")]
        _write_text(own[0], f"{_introduction(sweep)}\n\n{sections[-1]}")
        rows = list(_csv_rows(table, results))
        write_csv(own[1], list(rows[0]), (list(row.values()) for row in rows))
        write_json(own[2], {**_context(sweep, settings), **_document(table, results)})
        paths += [*own, picture] if drawn else own
    if failures:
        sections.append(_failures(failures))
    paths.append(folder / "report.md")
    _write_text(paths[-1], "\n\n".join(sections))
    return paths


def terminal_report(
    exhibits: Sequence[Exhibit], sweep: Sweep, store: Store, failures: Sequence[Failure] = ()
) -> str:
    """The tables, to be printed."""
    tables = [measured_table(exhibit, sweep, store) for exhibit in exhibits]
    sections = [f"{_name(table.exhibit)}\n{_terminal_table(table)}" for table in tables]
    sections += [f"Failed: {own.run.describe()}: {own.why}\n{own.tail}" for own in failures]
    if not sweep.data.comparable:
        sections.append(_NOT_COMPARABLE)
    return "\n\n".join(sections)


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8", newline="\n")


def _introduction(sweep: Sweep) -> str:
    seeds = ", ".join(map(str, sweep.seeds))
    several = len(sweep.seeds) > 1
    of_seeds = f"Mean ± standard deviation over seeds {seeds}." if several else f"Seed {seeds}."
    lines = [f"Data: {sweep.data.name}. {of_seeds} {_CHOSEN[sweep.select_on]}"]
    if sweep.data.comparable:
        lines.append("Upright: measured (difference to the paper). *Italics: the paper's number.*")
    else:
        lines.append(f"**{_NOT_COMPARABLE}** *Italics: the paper's numbers on its own data.*")
        lines.append("Replaced:\n\n" + "\n".join(f"* {note};" for note in sweep.data.notes))
    if sweep.flags:
        lines.append(f"Further settings of every run: `{' '.join(sweep.flags)}`.")
    return "\n\n".join(lines)


def _name(exhibit: Exhibit) -> str:
    kind = exhibit.name.rstrip("0123456789")
    return f"{kind.capitalize()} {exhibit.name.removeprefix(kind)}: {exhibit.title}"


def _section(
    table: MeasuredTable, results: Mapping[PlannedRun, Results], picture: str | None
) -> str:
    exhibit = table.exhibit
    lines = [f"## {_name(exhibit)}", _markdown_table(table)]
    if picture is not None:
        lines.insert(1, f"![{exhibit.title}]({picture})")
    if results:
        made_by = ", ".join(f"`{revision}`" for revision in _revisions(table.runs, results))
        lines.append(
            f"{len(results)} finished runs, by revision {made_by};"
            f" settings, seeds and versions of each are in `{exhibit.name}.json`."
        )
    return "\n\n".join(lines)


def _markdown_table(table: MeasuredTable) -> str:
    """Measured numbers and, where the paper has some, its own in italics below."""
    lines = [
        "| " + " | ".join(("", *table.columns)) + " |",
        "|---" * (len(table.columns) + 1) + "|",
    ]
    for row, cells in table.rows.items():
        texts = [row]
        for own in cells:
            reported = f"*{own.reported_text()}*" if table.has_reported else ""
            texts.append("<br>".join(filter(None, (own.text(), reported))))
        lines.append("| " + " | ".join(texts) + " |")
    return "\n".join(lines)


def _terminal_table(table: MeasuredTable) -> str:
    """The same in columns; the paper's numbers on lines of their own."""
    lines: list[tuple[str, ...]] = [("", *table.columns)]
    for row, cells in table.rows.items():
        own = tuple(cell.text() for cell in cells)
        if any(own):
            lines.append((row, *own))
        if table.has_reported:
            label = "  paper" if any(own) else f"{row}, paper"
            lines.append((label, *(cell.reported_text() for cell in cells)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _failures(failures: Sequence[Failure]) -> str:
    parts = ["## Failed runs"]
    for failure in failures:
        parts.append(f"{failure.run.describe()} (`{failure.run.name}`): {failure.why}")
        if failure.tail:
            parts.append(f"```\n{failure.tail}\n```")
    return "\n\n".join(parts)


def _csv_rows(
    table: MeasuredTable, results: Mapping[PlannedRun, Results]
) -> Iterator[dict[str, object]]:
    """A row for every cell."""
    for own in table.cells:
        yield {
            "exhibit": table.exhibit.name,
            "row": own.cell.row,
            "column": own.cell.column,
            "status": own.status,
            "measured_mean": _or_empty(own.mean),
            "measured_spread": _or_empty(own.spread),
            "seeds": " ".join(map(str, own.seeds)),
            "runs": " ".join(run.name for run in own.runs),
            "reported": _or_empty(own.cell.reported),
            "comparable": own.comparable,
            "difference": _or_empty(own.difference),
            "revisions": " ".join(_revisions(own.runs, results)),
        }


def _or_empty(value: float | None) -> object:
    return "" if value is None or math.isnan(value) else value


def _revisions(runs: Sequence[PlannedRun], results: Mapping[PlannedRun, Results]) -> list[str]:
    """Git revisions by which finished runs were made."""
    found: dict[str, None] = {}
    for run in runs:
        provenance: Mapping[str, object] = results[run].document.get("provenance") or {}
        found[str(provenance.get("git_revision") or "unknown")] = None
    return list(found)


def _context(sweep: Sweep, settings: Mapping[str, object] | None) -> dict[str, object]:
    return {
        "source": "reported: the paper's numbers, see vqa/reproduction/tables.json",
        "data": sweep.data.name,
        "comparable": sweep.data.comparable,
        "note": None if sweep.data.comparable else _NOT_COMPARABLE,
        "replaced": list(sweep.data.notes),
        "select_on": sweep.select_on,
        "seeds": sweep.seeds,
        "command": dict(settings or {}),
    }


def _document(table: MeasuredTable, results: Mapping[PlannedRun, Results]) -> dict[str, object]:
    """Everything as plain values, with what every measured number was made of."""
    return {
        "name": table.exhibit.name,
        "title": table.exhibit.title,
        "rows": [
            {"label": row, "cells": [_cell_document(own) for own in cells]}
            for row, cells in table.rows.items()
        ],
        "runs": {run.name: _run_document(run, found) for run, found in results.items()},
    }


def _cell_document(own: MeasuredCell) -> dict[str, object]:
    measured = {
        "mean": own.mean,
        "spread": own.spread,
        "seeds": own.seeds,
        "values": own.values,
        "runs": [run.name for run in own.runs],
        "needed_runs": own.needed,
    }
    return {
        "column": own.cell.column,
        "status": own.status,
        "reported": own.cell.reported,
        "comparable": own.comparable,
        "difference": own.difference,
        "measured": None if own.status == "cited" else measured,
    }


def _run_document(run: PlannedRun, found: Results) -> dict[str, object]:
    """Configuration, seed and origin of a finished run."""
    keys = ("opinion_scores", "settings", "seconds", "processes", "provenance")
    return {
        "description": run.describe(),
        "seed": run.seed,
        "split": run.split,
        "results": f"runs/{run.name}/{found.file.name}",
        **{key: found.document.get(key) for key in keys},
    }


def _draw(exhibit: Exhibit, sweep: Sweep, store: Store, path: Path) -> bool:
    """Draw how far the loss rises around the weights of finished runs, with a band over seeds.

    Returns:
        Whether there was one; nothing is written otherwise.
    """
    panels: dict[str, dict[str, torch.Tensor]] = {}
    positions = torch.empty(0)
    for cell in exhibit.cells:
        if cell.panel and cell.training is not None:
            found = rises(finished(sweep.runs(cell.training), store).values())
            if found is not None:
                positions = torch.tensor(found[0], dtype=torch.float64)
                panels.setdefault(cell.panel, {})[cell.label] = torch.tensor(found[1])
    if not panels:
        return False
    figure = Figure(figsize=(_WIDTH * len(panels), _HEIGHT), layout="constrained")
    every = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, curves) in zip(every, panels.items(), strict=True):
        draw_curves(axes, positions, curves)
        axes.set_ylabel("rise of the training loss")
        axes.set_title(title, fontsize="medium")
    here = "" if sweep.data.comparable else f"\nhere: {sweep.data.name}, synthetic scores"
    figure.suptitle(f"{exhibit.title}{here}", fontsize="medium")
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=120, format="png")
    return True
