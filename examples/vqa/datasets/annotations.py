"""Which annotation files describe a data set, and what their rows say."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from vqa.datasets.specs import DataSetSpec, Layout, Part
from vqa.datasets.tables import DatasetError, Table, read_list, read_tables

# The columns of every table, best first; case, blanks and underscores make no difference.
NAME_COLUMNS = (
    *("path", "file_path", "video_path", "image_path", "img_path"),
    *("image_name", "file_name", "video_name", "img_name", "name"),
    *("video_list", "vid", "flickr_id", "image", "video", "file"),
    *("image_file", "video_file", "img"),
)
PART_COLUMNS = ("is_test", "is_train", "split", "set", "part")
# Of what score.py writes: nobody's opinion, whatever a column of it is called.
PREDICTED = ("path", "score", "error")
_PARTS: Mapping[str, Part] = {
    **{part: part for part in get_args(Part)},
    "training": "train",
    "valid": "validation",
    "val": "validation",
    "testing": "test",
}
_TRUTH: Mapping[str, bool] = {
    **dict.fromkeys(("true", "1", "1.0", "yes"), True),
    **dict.fromkeys(("false", "0", "0.0", "no"), False),
}
_UNKNOWN = -1.0  # in the fields of a four-column list


# The annotation files that are there, by the part of their rows; None if these say it.
Annotations = dict[Part | None, Path]


@dataclass(frozen=True)
class Label:
    name: str
    score: float | None  # None if it is unknown
    part: Part | None
    place: str  # file and row, for messages


def find_annotations(spec: DataSetSpec, root: Path, annotations: Path | None) -> Annotations:
    """The annotation files to read, looked for in `root`.

    Or in the folder that is given as `annotations`, or that file itself. Its companions (the 1080p
    rows of LSVQ, the test rows of BIQ2021) are taken from beside it if there.
    """
    if annotations is not None and annotations.is_file():
        return _with_companions(spec, annotations)
    folder = root if annotations is None else annotations
    if not folder.is_dir():
        raise DatasetError(f"{folder}: expected the folder or annotation file of {spec.name}")
    for layout in spec.layouts:
        found = _those_there(folder, layout)
        if len(found) == len(layout):
            return found
    tried = "; or ".join(
        " with ".join(map(" or ".join, layout.values())) for layout in spec.layouts
    )
    raise DatasetError(f"{folder}: expected an annotation file of {spec.name}, tried {tried}")


def _with_companions(spec: DataSetSpec, given: Path) -> Annotations:
    for layout in spec.layouts:
        called = [
            part for part, names in layout.items() if given.name in {Path(n).name for n in names}
        ]
        if called:
            return _those_there(given.parent, layout) | dict.fromkeys(called, given)
    return {None: given}


def _those_there(folder: Path, layout: Layout) -> Annotations:
    return {part: path for part, names in layout.items() if (path := _first(folder, names))}


def _first(folder: Path, names: Sequence[str]) -> Path | None:
    paths = (folder / name for name in names)
    return next((path for path in paths if path.is_file()), None)


def read_labels(spec: DataSetSpec, files: Annotations, score_column: str | None) -> list[Label]:
    """The rows of all annotation files, with their parts as far as they are known."""
    source = next(iter(files.values()))
    labels = [
        label
        for part, path in files.items()
        for label in _read_file(spec, path, part, score_column)
    ]
    part_file = _first(source.parent, spec.part_files)
    if part_file is not None and all(label.part is None for label in labels):
        labels = _with_parts(labels, part_file)
    if spec.only is not None:
        labels = [replace(label, part=label.part or spec.only) for label in labels]
        labels = [label for label in labels if label.part == spec.only]
    if not labels:
        raise DatasetError(f"{source}: expected rows of the part {spec.only!r}, found none")
    unknown = next((label for label in labels if label.part is None), None)
    if spec.needs_parts and unknown is not None:
        raise DatasetError(
            f"{unknown.place}: expected a column {' or '.join(PART_COLUMNS)} that says the part;"
            f" load '{spec.name}-train' or another part to say it yourself"
        )
    return labels


def _read_file(
    spec: DataSetSpec, path: Path, part: Part | None, score_column: str | None
) -> Iterator[Label]:
    tables = (read_list(path),) if spec.four_columns else read_tables(path)
    scores = spec.scores if score_column is None else (score_column,)
    if tuple(tables[0].columns) == PREDICTED:
        raise DatasetError(
            f"{path}: expected opinion scores, found those that score.py has predicted; to"
            " train on these, call their column mos"
        )
    table, name, among = _choose_table(tables, spec.first_column_names, scores)
    parts = _part_columns(table)
    for row in table.rows:
        yield Label(
            table.text(row, name),
            _score(table, row, among),
            part or _part_of(table, row, parts),
            table.place(row),
        )


def _choose_table(
    tables: Sequence[Table], first_column_names: bool, scores: Sequence[str]
) -> tuple[Table, int, tuple[int, ...]]:
    """The first table that has names and scores, the column of names and those of scores."""
    for table in tables:
        among = table.find_columns(scores)
        name = table.find_column(NAME_COLUMNS)
        if name is None and first_column_names and among and 0 not in among:
            name = table.first_of_names(among)
        if name is not None and among:
            return table, name, among
    found = "; ".join(", ".join(table.columns) for table in tables)
    raise DatasetError(
        f"{tables[0].path}: expected a column of file names ({', '.join(NAME_COLUMNS)}) and one"
        f" of scores ({', '.join(scores)}), found the columns: {found} (cells are divided by"
        " commas, tabs, semicolons or blanks)"
    )


def _score(table: Table, row: int, among: Sequence[int]) -> float | None:
    """The score, or the mean of several raters' as far as they rated; None if it is unknown."""
    rated = [column for column in among if table.rows[row][column]] or among[:1]
    scores = [table.number(row, column) for column in rated]
    return None if table.is_list and scores == [_UNKNOWN] else sum(scores) / len(scores)


def _part_columns(table: Table) -> list[int]:
    found = (table.find_column([name]) for name in PART_COLUMNS)
    return [column for column in found if column is not None]


def _part_of(table: Table, row: int, columns: Sequence[int]) -> Part | None:
    """What all columns that know the part say of it; those of `is_test` know no validation part."""
    parts = {_read_part(table, row, column) for column in columns}
    if parts == {"train", "validation"}:
        return "validation"
    if len(parts) > 1:
        said = ", ".join(f"{table.rows[row][c]!r} in column {table.columns[c]!r}" for c in columns)
        raise DatasetError(f"{table.place(row)}: expected one part of the data set, got {said}")
    return next(iter(parts), None)


def _read_part(table: Table, row: int, column: int) -> Part:
    cell = table.text(row, column).lower()
    column_name = table.columns[column].lower()
    if cell in _TRUTH and column_name.endswith(("test", "train")):
        return "test" if _TRUTH[cell] == column_name.endswith("test") else "train"
    if cell in _PARTS:
        return _PARTS[cell]
    raise DatasetError(
        f"{table.place(row)}: expected a part of the data set in column"
        f" {table.columns[column]!r} ({', '.join(_PARTS)}), got {cell!r}"
    )


def _with_parts(labels: Sequence[Label], path: Path) -> list[Label]:
    """The labels with the parts that another file says."""
    table = read_tables(path)[0]
    name, columns = table.find_column(NAME_COLUMNS), _part_columns(table)
    if name is None or not columns:
        raise DatasetError(
            f"{path}: expected a column of file names and one of parts ({', '.join(PART_COLUMNS)}),"
            f" found the columns: {', '.join(table.columns)}"
        )
    parts = {table.text(row, name): _part_of(table, row, columns) for row in table.rows}
    for label in labels:
        if label.name not in parts:
            raise DatasetError(f"{label.place}: expected {label.name} in {path} too")
    return [replace(label, part=parts[label.name]) for label in labels]
