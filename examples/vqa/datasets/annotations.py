"""Which annotation files describe a data set, and what their rows say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vqa.datasets.samples import DatasetError, Part
from vqa.datasets.specs import AnnotationFile, DataSetSpec
from vqa.datasets.tables import Row, Table, read_list, read_tables

NAME_COLUMNS = (
    "path",
    "image_name",
    "file_name",
    "video_name",
    "name",
    "video_list",
    "vid",
    "flickr_id",
    "image",
    "video",
    "file",
)
PREDICTED = ("path", "score", "error")
"""Columns of what score.py writes: nobody's opinion, whatever a column of it is called."""
_PARTS: Mapping[str, Part] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
    "testing": "test",
    "1080p": "1080p",
    "ood": "ood",
}
_TRUTH: Mapping[str, bool] = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class FoundAnnotation:
    """An annotation file that is there, and the part of its rows; None if the rows say it."""

    path: Path
    part: Part | None


@dataclass(frozen=True)
class Label:
    """What one row says."""

    name: str
    score: float
    part: Part | None
    place: str
    """File and row, for messages."""


def find_annotations(
    spec: DataSetSpec, root: Path, annotations: Path | None
) -> tuple[FoundAnnotation, ...]:
    """The annotation files to read.

    Args:
        spec: the data set.
        root: where its files are looked for.
        annotations: a folder to look in instead, or the annotation file itself. Its companions
            (the 1080p rows of LSVQ, the test rows of BIQ2021) are taken from beside it if there.

    Raises:
        DatasetError: none is there; the message lists the names that were tried.
    """
    if annotations is not None and annotations.is_file():
        return tuple(_with_companions(spec, annotations))
    folder = root if annotations is None else annotations
    if not folder.is_dir():
        raise DatasetError(f"{folder}: expected the folder or annotation file of {spec.name}")
    for layout in spec.layouts:
        found = [_existing(folder, usual) for usual in layout]
        complete = tuple(file for file in found if file is not None)
        if len(complete) == len(layout):
            return complete
    tried = "; or ".join(
        " with ".join(" or ".join(usual.names) for usual in layout) for layout in spec.layouts
    )
    raise DatasetError(f"{folder}: expected an annotation file of {spec.name}, tried {tried}")


def _existing(folder: Path, usual: AnnotationFile) -> FoundAnnotation | None:
    paths = (folder / name for name in usual.names)
    return next((FoundAnnotation(path, usual.part) for path in paths if path.is_file()), None)


def _with_companions(spec: DataSetSpec, given: Path) -> Iterator[FoundAnnotation]:
    for layout in spec.layouts:
        if not any(_is_called(given, usual) for usual in layout):
            continue
        for usual in layout:
            if _is_called(given, usual):
                yield FoundAnnotation(given, usual.part)
            elif companion := _existing(given.parent, usual):
                yield companion
        return
    yield FoundAnnotation(given, None)


def _is_called(path: Path, usual: AnnotationFile) -> bool:
    return path.name in {Path(name).name for name in usual.names}


def read_labels(
    spec: DataSetSpec, files: Sequence[FoundAnnotation], score_column: str | None
) -> list[Label]:
    """The rows of all annotation files, with their parts as far as they are known.

    Raises:
        DatasetError: a file or row cannot be used.
    """
    labels = [label for file in files for label in _read_file(spec, file, score_column)]
    part_file = _existing(files[0].path.parent, AnnotationFile(spec.part_files))
    if part_file is not None and all(label.part is None for label in labels):
        labels = _add_parts(labels, _read_parts(spec, part_file.path), part_file.path)
    if spec.only is not None:
        labels = [replace(label, part=label.part or spec.only) for label in labels]
        labels = [label for label in labels if label.part == spec.only]
    _check(spec, files[0].path, labels)
    return labels


def _check(spec: DataSetSpec, source: Path, labels: Sequence[Label]) -> None:
    if not labels:
        raise DatasetError(f"{source}: expected rows of the part {spec.only!r}, found none")
    unknown = next((label for label in labels if label.part is None), None)
    if spec.needs_parts and unknown is not None:
        raise DatasetError(
            f"{unknown.place}: expected a column {' or '.join(spec.parts)} that says the part;"
            f" load '{spec.name}-train' or another part to say it yourself"
        )


def _read_file(
    spec: DataSetSpec, file: FoundAnnotation, score_column: str | None
) -> Iterator[Label]:
    tables = (read_list(file.path),) if spec.four_columns else read_tables(file.path)
    scores = spec.scores if score_column is None else (score_column,)
    if tables[0].columns == PREDICTED:
        raise DatasetError(
            f"{file.path}: expected opinion scores, found those that score.py has predicted; to"
            " train on these, call their column mos"
        )
    table, name, score = _choose_table(tables, spec.first_column_names, scores)
    part = table.find_column(spec.parts)
    for row in table.rows:
        yield Label(
            table.text(row, name),
            table.number(row, score),
            file.part or (None if part is None else _read_part(table, row, part)),
            table.place(row),
        )


def _choose_table(
    tables: Sequence[Table], first_column_names: bool, scores: Sequence[str]
) -> tuple[Table, int, int]:
    """The first table that has names and scores, and the indices of these two columns."""
    for table in tables:
        score = table.find_column(scores)
        name = table.find_column(NAME_COLUMNS)
        if name is None and first_column_names and score != 0:
            name = 0
        if name is not None and score is not None:
            return table, name, score
    found = "; ".join(", ".join(table.columns) for table in tables)
    raise DatasetError(
        f"{tables[0].path}: expected a column of file names ({', '.join(NAME_COLUMNS)}) and one"
        f" of scores ({', '.join(scores)}), found the columns: {found}"
    )


def _read_part(table: Table, row: Row, column: int) -> Part:
    cell = table.text(row, column).lower()
    if cell in _TRUTH and table.columns[column].lower() == "is_test":
        return "test" if _TRUTH[cell] else "train"
    if cell in _PARTS:
        return _PARTS[cell]
    raise DatasetError(
        f"{table.place(row)}: expected a part of the data set in column"
        f" {table.columns[column]!r} ({', '.join(_PARTS)}), got {cell!r}"
    )


def _read_parts(spec: DataSetSpec, path: Path) -> dict[str, Part]:
    table = read_tables(path)[0]
    name, part = table.find_column(NAME_COLUMNS), table.find_column(spec.parts)
    if name is None or part is None:
        raise DatasetError(
            f"{path}: expected a column of file names and one of parts ({', '.join(spec.parts)}),"
            f" found the columns: {', '.join(table.columns)}"
        )
    return {table.text(row, name): _read_part(table, row, part) for row in table.rows}


def _add_parts(labels: Sequence[Label], parts: Mapping[str, Part], part_file: Path) -> list[Label]:
    for label in labels:
        if label.name not in parts:
            raise DatasetError(f"{label.place}: expected {label.name} in {part_file} too")
    return [replace(label, part=parts[label.name]) for label in labels]
