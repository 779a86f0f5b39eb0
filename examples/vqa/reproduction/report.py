"""Markdown, CSV, JSON and pictures of tables and figures, whatever part of them is measured."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from vqa.io.files import replacing, write_json
from vqa.reproduction.catalogue import Exhibit, LossFigure
from vqa.reproduction.cells import FilledTable, fill
from vqa.reproduction.drawing import draw
from vqa.reproduction.launch import Failure
from vqa.reproduction.sweep import Sweep
from vqa.reproduction.texts import (
    CSV_COLUMNS,
    csv_rows,
    markdown_table,
    revisions,
    table_document,
    terminal_table,
)
from vqa.store import Store


def write_report(
    folder: Path,
    exhibits: Sequence[Exhibit],
    sweep: Sweep,
    store: Store,
    failures: Sequence[Failure] = (),
    settings: Mapping[str, object] | None = None,
) -> list[Path]:
    """Write every table and figure into files of its own, and all of them into report.md.

    Args:
        folder: where to.
        exhibits: what to report.
        sweep: how it was run.
        store: where finished runs are.
        failures: runs that failed just now.
        settings: of the command, for the JSON files.
    """
    paths, sections = [], [_introduction(sweep)]
    for exhibit in exhibits:
        table = fill(exhibit, sweep, store)
        picture = folder / f"{exhibit.name}.png"
        drawn = isinstance(exhibit, LossFigure) and draw(exhibit, sweep, store, picture)
        section = _section(table, sweep, store, picture.name if drawn else None)
        sections.append(section)
        document = {**_context(sweep, settings), **table_document(table, store)}
        paths += _write_one(folder, table, document, f"{_introduction(sweep)}\n\n{section}", store)
        paths += [picture] if drawn else []
    if failures:
        sections.append(_failures(failures))
    paths.append(folder / "report.md")
    _write_text(paths[-1], "\n\n".join(sections))
    return paths


def terminal_report(
    exhibits: Sequence[Exhibit], sweep: Sweep, store: Store, failures: Sequence[Failure] = ()
) -> str:
    """The tables, to be printed."""
    tables = [fill(exhibit, sweep, store) for exhibit in exhibits]
    sections = [f"{_name(table)}\n{terminal_table(table)}" for table in tables]
    failed = [f"Failed: {own.run.describe()}: {own.why}\n{own.tail}" for own in failures]
    return "\n\n".join(
        (*sections, *failed, *([] if sweep.data.comparable else [_not_comparable()]))
    )


def _write_one(
    folder: Path, table: FilledTable, document: Mapping[str, object], text: str, store: Store
) -> list[Path]:
    paths = [folder / f"{table.name}.{kind}" for kind in ("md", "csv", "json")]
    _write_text(paths[0], text)
    rows = io.StringIO(newline="")
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    writer.writerows(csv_rows(table, store))
    _write_text(paths[1], rows.getvalue().rstrip("\n"))
    write_json(paths[2], document)
    return paths


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8", newline="\n")


def _introduction(sweep: Sweep) -> str:
    seeds = ", ".join(map(str, sweep.seeds))
    of_seeds = (
        f"Seed {seeds}."
        if len(sweep.seeds) == 1
        else f"Mean ± standard deviation over seeds {seeds}."
    )
    chosen = {
        "validation": "Epochs are chosen on a validation part of the training samples.",
        "test": "Epochs are chosen on the test part, as in the published code, which flatters.",
        "last": "Every score is that of the last epoch.",
    }[sweep.select_on]
    lines = [f"Data: {sweep.data.name}. {of_seeds} {chosen}"]
    if sweep.data.comparable:
        lines.append("Upright: measured (difference to the paper). *Italics: the paper's number.*")
    else:
        lines.append(f"**{_not_comparable()}** *Italics: the paper's numbers on its own data.*")
        lines.append("Replaced:\n\n" + "\n".join(f"* {note};" for note in sweep.data.notes))
    if sweep.flags:
        lines.append(f"Further settings of every run: `{' '.join(sweep.flags)}`.")
    return "\n\n".join(lines)


def _not_comparable() -> str:
    return "mini-UGC, synthetic scores: not comparable with the paper's column."


def _name(table: FilledTable) -> str:
    kind = table.name.rstrip("0123456789")
    return f"{kind.capitalize()} {table.name.removeprefix(kind)}: {table.title}"


def _section(table: FilledTable, sweep: Sweep, store: Store, picture: str | None) -> str:
    lines = [f"## {_name(table)}", markdown_table(table)]
    if picture is not None:
        lines.insert(1, f"![{table.title}]({picture})")
    finished = {
        run: None
        for row in table.rows
        for cell in row.cells
        if cell.measured is not None
        for run in cell.measured.runs
    }
    if finished:
        made_by = ", ".join(f"`{revision}`" for revision in revisions(finished, store))
        lines.append(
            f"{len(finished)} finished runs, by revision {made_by};"
            f" settings, seeds and versions of each are in `{table.name}.json`."
        )
    return "\n\n".join(lines)


def _failures(failures: Sequence[Failure]) -> str:
    parts = ["## Failed runs"]
    for failure in failures:
        parts.append(f"{failure.run.describe()} (`{failure.run.name}`): {failure.why}")
        if failure.tail:
            parts.append(f"```\n{failure.tail}\n```")
    return "\n\n".join(parts)


def _context(sweep: Sweep, settings: Mapping[str, object] | None) -> dict[str, object]:
    return {
        "source": "reported: the paper's numbers, see vqa/reproduction/tables.json",
        "data": sweep.data.name,
        "comparable": sweep.data.comparable,
        "note": None if sweep.data.comparable else _not_comparable(),
        "replaced": list(sweep.data.notes),
        "select_on": sweep.select_on,
        "seeds": sweep.seeds,
        "command": dict(settings or {}),
    }
