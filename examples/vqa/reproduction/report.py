"""Tables and figures of what is measured so far: Markdown, CSV, JSON and pictures."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure

from vqa.figures import draw_curves
from vqa.io.files import replacing, write_csv, write_json, write_text
from vqa.metrics import summarise
from vqa.reproduction.catalogue import Cell, Exhibit
from vqa.reproduction.launch import Failure
from vqa.reproduction.runs import PlannedRun, Sweep
from vqa.store import Results, Store

Status = Literal["measured", "not measured", "cited"]
_NOT_COMPARABLE = "mini-UGC, synthetic scores: not comparable with the paper's column."
_CHOSEN = {
    "validation": "Epochs are chosen on a validation part of the training samples.",
    "test": "Epochs are chosen on the test part, as in the published code, so scores are too high.",
    "last": "Every score is that of the last epoch.",
}


@dataclass(frozen=True)
class MeasuredCell:
    """One number over seeds, beside the paper's; of each seed it is the median over splits."""

    cell: Cell
    comparable: bool  # whether the two were measured on the same data
    seeds: tuple[int, ...] = ()  # those of which every split is finished
    values: tuple[float, ...] = ()  # one for each of them; NaN where a score was not defined
    results: Mapping[PlannedRun, Results] = field(default_factory=dict)  # of incomplete seeds, too
    needed: int = 0  # runs for all seeds

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
            progress = f" ({len(self.results)}/{self.needed} runs)" if self.results else ""
            return f"not measured{progress}"
        if math.isnan(self.mean):
            return "undefined"
        spread = "" if self.spread is None else f" ± {self.spread:.3f}"
        difference = "" if self.difference is None else f" ({self.difference:+.3f})"
        some = "" if len(self.results) == self.needed else f" [{len(self.seeds)} seeds]"
        return f"{self.mean:.3f}{spread}{difference}{some}"


@dataclass(frozen=True)
class MeasuredTable:
    exhibit: Exhibit
    cells: tuple[MeasuredCell, ...]

    @property
    def rows(self) -> dict[str, list[MeasuredCell]]:
        by_row = groupby(self.cells, key=lambda own: own.cell.row)
        return {row: list(cells) for row, cells in by_row}

    @property
    def results(self) -> dict[PlannedRun, Results]:
        """Of every finished run behind a number."""
        return {run: found for own in self.cells for run, found in own.results.items()}


def _measured(cell: Cell, sweep: Sweep, store: Store) -> MeasuredCell:
    comparable = sweep.comparable and not cell.panel
    if cell.training is None:
        return MeasuredCell(cell, comparable)
    runs = sweep.runs(cell.training)
    found = {run: results for run in runs if (results := store.results(run)) is not None}
    seeds, values = [], []
    for seed in sweep.seeds:
        of_seed = [run for run in runs if run.seed == seed]
        if all(run in found for run in of_seed):
            seeds.append(seed)
            values.append(statistics.median(_value(found[run], cell, sweep) for run in of_seed))
    return MeasuredCell(cell, comparable, tuple(seeds), tuple(values), found, len(runs))


def _value(results: Results, cell: Cell, sweep: Sweep) -> float:
    if cell.metric == "sharpness":
        return results.sharpness
    return results.score(sweep.part(cell.part), cell.metric)


def write_report(
    folder: Path,
    exhibits: Sequence[Exhibit],
    sweep: Sweep,
    store: Store,
    failures: Sequence[Failure] = (),
    settings: Mapping[str, object] | None = None,
) -> list[Path]:
    """Write every table and figure into files of its own, and all of them into report.md."""
    context = {
        "source": "reported: the paper's numbers, see vqa/reproduction/tables.json",
        "data": sweep.data,
        "comparable": sweep.comparable,
        "note": None if sweep.comparable else _NOT_COMPARABLE,
        "replaced": sweep.replaced,
        "select_on": sweep.select_on,
        "seeds": sweep.seeds,
        "command": settings or {},
    }
    paths, sections = [], [_introduction(sweep)]
    for exhibit in exhibits:
        cells = tuple(_measured(cell, sweep, store) for cell in exhibit.cells)
        table = MeasuredTable(exhibit, cells)
        picture = folder / f"{exhibit.name}.png"
        drawn = _draw(table, sweep, picture)
        sections.append(_section(table, picture.name if drawn else None))
        own = [folder / f"{exhibit.name}.{kind}" for kind in ("md", "csv", "json")]
        write_text(own[0], f"{_introduction(sweep)}\n\n{sections[-1]}")
        rows = list(_csv_rows(table))
        write_csv(own[1], list(rows[0]), (list(row.values()) for row in rows))
        write_json(own[2], {**context, **_document(table)})
        paths += [*own, picture] if drawn else own
    if failures:
        sections.append(_failures(failures))
    paths.append(folder / "report.md")
    write_text(paths[-1], "\n\n".join(sections))
    return paths


def _introduction(sweep: Sweep) -> str:
    seeds = ", ".join(map(str, sweep.seeds))
    several = len(sweep.seeds) > 1
    of_seeds = f"Mean ± standard deviation over seeds {seeds}." if several else f"Seed {seeds}."
    lines = [f"Data: {sweep.data}. {of_seeds} {_CHOSEN[sweep.select_on]}"]
    if sweep.comparable:
        lines.append("Upright: measured (difference to the paper). *Italics: the paper's number.*")
    else:
        lines.append(f"**{_NOT_COMPARABLE}** *Italics: the paper's numbers on its own data.*")
        lines.append("Replaced:\n\n" + "\n".join(f"* {what};" for what in sweep.replaced))
    if sweep.flags:
        lines.append(f"Further settings of every run: `{' '.join(sweep.flags)}`.")
    return "\n\n".join(lines)


def _section(table: MeasuredTable, picture: str | None) -> str:
    exhibit, results = table.exhibit, table.results
    kind = exhibit.name.rstrip("0123456789")
    head = f"## {kind.capitalize()} {exhibit.name.removeprefix(kind)}: {exhibit.title}"
    lines = [head, _markdown_table(table)]
    if picture is not None:
        lines.insert(1, f"![{exhibit.title}]({picture})")
    if results:
        made_by = ", ".join(f"`{revision}`" for revision in _revisions(results))
        lines.append(
            f"{len(results)} finished runs, by revision {made_by};"
            f" settings, seeds and versions of each are in `{exhibit.name}.json`."
        )
    return "\n\n".join(lines)


def _markdown_table(table: MeasuredTable) -> str:
    """Measured numbers and, where the paper has some, its own in italics below."""
    has_reported = any(own.cell.reported is not None for own in table.cells)
    columns = dict.fromkeys(own.cell.column for own in table.cells)
    lines = ["| " + " | ".join(("", *columns)) + " |", "|---" * (len(columns) + 1) + "|"]
    for row, cells in table.rows.items():
        texts = [row]
        for own in cells:
            reported = "-" if own.cell.reported is None else f"{own.cell.reported:.3f}"
            both = (own.text(), f"*{reported}*" if has_reported else "")
            texts.append("<br>".join(filter(None, both)))
        lines.append("| " + " | ".join(texts) + " |")
    return "\n".join(lines)


def _failures(failures: Sequence[Failure]) -> str:
    parts = ["## Failed runs"]
    for failure in failures:
        parts.append(f"{failure.run.describe()} (`{failure.run.name}`): {failure.why}")
        if failure.tail:
            parts.append(f"```\n{failure.tail}\n```")
    return "\n\n".join(parts)


def _csv_rows(table: MeasuredTable) -> Iterator[dict[str, object]]:
    for own in table.cells:
        yield {
            "exhibit": table.exhibit.name,
            "row": own.cell.row,
            "column": own.cell.column,
            "status": own.status,
            "measured_mean": _or_empty(own.mean),
            "measured_spread": _or_empty(own.spread),
            "seeds": " ".join(map(str, own.seeds)),
            "runs": " ".join(run.name for run in own.results),
            "reported": _or_empty(own.cell.reported),
            "comparable": own.comparable,
            "difference": _or_empty(own.difference),
            "revisions": " ".join(_revisions(own.results)),
        }


def _or_empty(value: float | None) -> object:
    return "" if value is None or math.isnan(value) else value


def _revisions(results: Mapping[PlannedRun, Results]) -> list[str]:
    """Git revisions by which finished runs were made."""
    provenances = (found.document.get("provenance") or {} for found in results.values())
    return list(dict.fromkeys(str(own.get("git_revision") or "unknown") for own in provenances))


def _document(table: MeasuredTable) -> dict[str, object]:
    return {
        "name": table.exhibit.name,
        "title": table.exhibit.title,
        "rows": [
            {"label": row, "cells": [_cell_document(own) for own in cells]}
            for row, cells in table.rows.items()
        ],
        "runs": {run.name: _run_document(run, found) for run, found in table.results.items()},
    }


def _cell_document(own: MeasuredCell) -> dict[str, object]:
    measured = {
        "mean": own.mean,
        "spread": own.spread,
        "seeds": own.seeds,
        "values": own.values,
        "runs": [run.name for run in own.results],
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
    keys = ("opinion_scores", "settings", "seconds", "processes", "provenance")
    return {
        "description": run.describe(),
        "seed": run.seed,
        "split": run.split,
        "results": f"runs/{run.name}/{found.file.name}",
        **{key: found.document.get(key) for key in keys},
    }


def _draw(table: MeasuredTable, sweep: Sweep, path: Path) -> bool:
    """How far the loss rises around the weights of finished runs; False if there are none."""
    panels: dict[str, dict[str, torch.Tensor]] = {}
    positions = torch.empty(0)
    for own in table.cells:
        landscapes = [found.landscape for found in own.results.values() if found.landscape]
        if own.cell.panel and landscapes:
            positions = torch.tensor(landscapes[0]["positions"], dtype=torch.float64)
            panels.setdefault(own.cell.panel, {})[own.cell.label] = _rises(landscapes, positions)
    if not panels:
        return False
    figure = Figure(figsize=(4.4 * len(panels), 4.6), layout="constrained")
    every = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, curves) in zip(every, panels.items(), strict=True):
        draw_curves(axes, positions, curves)
        axes.set_ylabel("rise of the training loss")
        axes.set_title(title, fontsize="medium")
    here = "" if sweep.comparable else f"\nhere: {sweep.data}, synthetic scores"
    figure.suptitle(f"{table.exhibit.title}{here}", fontsize="medium")
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=120, format="png")
    return True


def _rises(landscapes: Sequence[Mapping[str, Any]], positions: torch.Tensor) -> torch.Tensor:
    """Losses minus the one of the weights themselves [runs, A]."""
    centre = int(positions.abs().argmin())
    rises = []
    for landscape in landscapes:
        losses = [math.nan if loss is None else float(loss) for loss in landscape["losses"]]
        rises.append([loss - losses[centre] for loss in losses])
    return torch.tensor(rises)
