"""Annotation files as tables of text: CSV, four-column list, spreadsheet, MATLAB file.

The kind of a file is recognised by its content, not by its name: so is what separates the cells of
a text (commas, tabs, semicolons or blanks), and whether its first row is a header.
"""

from __future__ import annotations

import csv
import fnmatch
import io
import math
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

import numpy as np
from openpyxl import load_workbook
from openpyxl.utils.exceptions import InvalidFileException
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from vqa.datasets.specs import DatasetError
from vqa.io.label_list import LabelListError, parse_label_list, parse_number

_LIST_COLUMNS = ("path", "duration", "fps", "mos")
# Of names and scores without a header; the other way round if only the first cell is a number.
_PAIR_COLUMNS = ("path", "mos")
_SEPARATORS = ("\t", ";", ",")
BLANK = " "
_MATLAB_COLUMNS = ("video_list", "mos")
_UNREADABLE_MATLAB = (NotImplementedError, MatReadError, zlib.error)


Line = tuple[int, Sequence[str]]
"""Its number, as an editor counts, and its cells."""


@dataclass(frozen=True)
class Row:
    """One line of a table; `number` counts as an editor or a spreadsheet program does."""

    number: int
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A header and rows of as many cells."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    sheet: str | None = None
    decimal_comma: bool = False
    """Whether 3,5 is a number, as in the files that spreadsheets write where it is."""

    @property
    def is_list(self) -> bool:
        """Whether it is a four-column list."""
        return self.columns == _LIST_COLUMNS

    def find_column(self, names: Iterable[str]) -> int | None:
        """Index of the first of `names` that is a column.

        Upper and lower case, blanks and underscores make no difference.
        """
        columns = [_simple(column) for column in self.columns]
        wanted = (_simple(name) for name in names)
        return next((columns.index(name) for name in wanted if name in columns), None)

    def find_columns(self, names: Iterable[str]) -> tuple[int, ...]:
        """Indices of the first of `names` that is a column, or all of those that `a,b*` means."""
        columns = [_simple(column) for column in self.columns]
        for name in names:
            if (one := self.find_column([name])) is not None:
                return (one,)
            each = [fnmatch.filter(columns, _simple(pattern)) for pattern in name.split(",")]
            if all(each):
                return tuple(dict.fromkeys(columns.index(one) for own in each for one in own))
        return ()

    def first_of_names(self, scores: Sequence[int]) -> int | None:
        """Index of the first column that may hold names: of no scores, and no index of the rows."""
        first = self.rows[0].cells
        left = [column for column in range(len(self.columns)) if column not in scores]
        texts = [column for column in left if not _is_number(first[column])]
        return next(iter(texts or left[:1]), None)

    def place(self, row: Row) -> str:
        """Where a row is, for messages."""
        sheet = "" if self.sheet is None else f", sheet {self.sheet}"
        return f"{self.path}{sheet}, row {row.number}"

    def text(self, row: Row, column: int) -> str:
        """A cell that must not be empty."""
        cell = row.cells[column]
        if not cell:
            raise DatasetError(
                f"{self.place(row)}: expected a value in column {self.columns[column]!r}"
            )
        return cell

    def number(self, row: Row, column: int) -> float:
        """A cell that must be a finite number."""
        cell = self.text(row, column)
        try:
            value = parse_number(cell.replace(",", ".") if self.decimal_comma else cell)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DatasetError(
                f"{self.place(row)}: expected a finite number in column"
                f" {self.columns[column]!r}, got {cell!r}"
            )
        return value


def read_tables(path: Path) -> tuple[Table, ...]:
    """Every table of an annotation file; only a spreadsheet can have more than one.

    A four-column list has the columns path, duration, fps and mos.

    Raises:
        DatasetError: the file cannot be read, has no rows, or a row has another number of cells
            than the header.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: expected a readable annotation file ({error})") from error
    if content.startswith(b"PK\x03\x04"):
        return _read_workbook(path, content)
    if content.startswith(b"MATLAB"):
        return (_read_matlab(path),)
    return (_read_text(path, content),)


def read_list(path: Path) -> Table:
    """A four-column list, whatever its first row looks like.

    Raises:
        DatasetError: see `vqa.io.label_list.parse_label_list`.
    """
    try:
        videos = parse_label_list(path)
    except LabelListError as error:
        raise DatasetError(str(error)) from error
    rows = (
        Row(number, (v.path, repr(v.duration), repr(v.frame_rate), repr(v.score)))
        for number, v in enumerate(videos, start=1)
    )
    return Table(path, _LIST_COLUMNS, tuple(rows))


def _read_text(path: Path, content: bytes) -> Table:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{path}: expected a UTF-8 text, an .xlsx or a MATLAB file ({error})"
        ) from error
    lines, separator = divided(path, text)
    first = next((cells for _, cells in lines if any(cells)), [])
    if separator == "," and _is_list_row(first):
        return read_list(path)
    decimal_comma = separator != ","
    columns = _LIST_COLUMNS if _is_list_row(first) else columns_without_header(first, decimal_comma)
    if columns:
        lines = [(0, columns), *lines]
    return _to_table(path, lines, decimal_comma=decimal_comma)


def divided(path: Path, text: str) -> tuple[list[Line], str]:
    """The cells of every line of a text, and what separates them.

    Args:
        path: for messages.
        text: its content.

    Raises:
        DatasetError: a cell that begins with a quotation mark never ends.
    """
    by_separator = {separator: _lines(path, text, separator) for separator in _SEPARATORS}
    separator = _choose_separator(by_separator)
    if separator == BLANK:
        return list(_divided_by_blanks(text)), BLANK
    return by_separator[separator], separator


def _divided_by_blanks(text: str) -> Iterator[Line]:
    """Words below a header of as many words; otherwise a name with blanks is one cell, too."""
    lines = list(io.StringIO(text, newline=""))
    filled = [line.split() for line in lines if line.strip()]
    even = len({len(words) for words in filled}) == 1
    whole = even and not any(map(_is_number, filled[0]))
    for number, line in enumerate(lines, start=1):
        yield number, line.split() if whole else _name_and_score(line)


def _name_and_score(line: str) -> list[str]:
    """The words, but those around a single number at the beginning or the end are one name."""
    words = line.split()
    numbers = [_is_number(word) for word in words]
    if sum(numbers) != 1 or not (numbers[0] or numbers[-1]):
        return words
    return line.rsplit(maxsplit=1) if numbers[-1] else line.split(maxsplit=1)


def _lines(path: Path, text: str, separator: str) -> list[Line]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        return [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise DatasetError(
            f"{path}, row {reader.line_num}: expected a CSV row ({error})"
        ) from error


def _choose_separator(
    by_separator: Mapping[str, Sequence[Line]],
) -> str:
    """The one that gives every row as many cells, or else the one that divides the first row.

    Blanks are only tried where none does, since names may have some.
    """
    widths = {
        separator: [len(cells) for _, cells in lines if any(cell.strip() for cell in cells)]
        for separator, lines in by_separator.items()
    }
    dividing = [separator for separator, each in widths.items() if each and each[0] > 1]
    even = [separator for separator in dividing if len(set(widths[separator])) == 1]
    return next(iter([*even, *reversed(dividing)]), BLANK)


def columns_without_header(first: Sequence[str], decimal_comma: bool) -> tuple[str, ...]:
    """The columns of pairs that begin in the first row; none if that is a header."""
    numbers = [_is_number(cell.replace(",", ".") if decimal_comma else cell) for cell in first]
    if len(first) != len(_PAIR_COLUMNS) or not any(numbers):
        return ()
    return _PAIR_COLUMNS if numbers[1] else _PAIR_COLUMNS[::-1]


def _is_list_row(cells: Sequence[str]) -> bool:
    return len(cells) == len(_LIST_COLUMNS) and all(_is_number(cell) for cell in cells[1:])


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(parse_number(cell))
    except ValueError:
        return False


def _read_workbook(path: Path, content: bytes) -> tuple[Table, ...]:
    try:
        sheets = list(_sheets(content))
    except (InvalidFileException, zipfile.BadZipFile, ParseError, KeyError, ValueError) as error:
        raise DatasetError(f"{path}: expected an .xlsx spreadsheet ({error})") from error
    tables = [_to_table(path, lines, title) for title, lines in sheets if _is_filled(lines)]
    if not tables:
        raise DatasetError(f"{path}: expected a header and at least one row, all sheets are empty")
    return tuple(tables)


def _sheets(content: bytes) -> Iterator[tuple[str, list[tuple[int, list[str]]]]]:
    """Title and numbered lines of every sheet."""
    workbook = load_workbook(io.BytesIO(content), read_only=True, data_only=True)
    for sheet in workbook.worksheets:
        lines = enumerate(sheet.iter_rows(values_only=True), start=1)
        yield sheet.title, [(number, [_cell_text(v) for v in values]) for number, values in lines]
    workbook.close()


def _is_filled(lines: Iterable[tuple[int, Sequence[str]]]) -> bool:
    return any(cell for _, cells in lines for cell in cells)


def _cell_text(value: object) -> str:
    return "" if value is None else str(value)


def _read_matlab(path: Path) -> Table:
    try:
        variables: Mapping[str, Any] = loadmat(str(path), appendmat=False)
    except (*_UNREADABLE_MATLAB, ValueError, TypeError, OSError) as error:
        raise DatasetError(f"{path}: expected a MATLAB file up to version 7 ({error})") from error
    if missing := [name for name in _MATLAB_COLUMNS if name not in variables]:
        found = ", ".join(name for name in variables if not name.startswith("__")) or "none"
        raise DatasetError(f"{path}: expected the variable {missing[0]!r}, found: {found}")
    columns = [
        [str(np.squeeze(item)) for item in np.ravel(variables[name])] for name in _MATLAB_COLUMNS
    ]
    if len(columns[0]) != len(columns[1]):
        raise DatasetError(
            f"{path}: expected a score for every video, found {len(columns[0])} videos and"
            f" {len(columns[1])} scores"
        )
    lines = [(0, _MATLAB_COLUMNS), *enumerate(zip(*columns, strict=True), start=1)]
    return _to_table(path, lines)


def _to_table(
    path: Path,
    lines: Iterable[tuple[int, Sequence[str]]],
    sheet: str | None = None,
    decimal_comma: bool = False,
) -> Table:
    """The first line that is not empty is the header."""
    filled = [
        Row(number, tuple(cell.strip() for cell in cells))
        for number, cells in lines
        if any(cell.strip() for cell in cells)
    ]
    if len(filled) < 2:
        raise DatasetError(f"{path}: expected a header and at least one row")
    header, *rows = filled
    table = Table(path, header.cells, tuple(rows), sheet, decimal_comma)
    for row in rows:
        if len(row.cells) != len(header.cells):
            raise DatasetError(
                f"{table.place(row)}: expected {len(header.cells)} cells like the header, got"
                f" {len(row.cells)}"
            )
    return table


def _simple(column: str) -> str:
    return re.sub(r"[\s_]", "", column).lower()
