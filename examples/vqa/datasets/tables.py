"""Annotation files as tables of text: CSV, four-column list, spreadsheet, MATLAB file.

The kind of a file is recognised by its content, not by its name: so is what separates the cells of
a text (commas, tabs, semicolons or blanks), and whether its first row is a header.
"""

import csv
import fnmatch
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from openpyxl import load_workbook
from scipy.io import loadmat

_LIST_COLUMNS = ("path", "duration", "fps", "mos")
# Of names and scores without a header; the other way round if only the first cell is a number.
_PAIR_COLUMNS = ("path", "mos")
BLANK = " "
_MATLAB_COLUMNS = ("video_list", "mos")

# Its number, as an editor or a spreadsheet program counts, and its cells.
Line = tuple[int, Sequence[str]]


class DatasetError(ValueError):
    """A data set cannot be used; the message names the file and, where there is one, the row."""


@dataclass(frozen=True)
class Table:
    """A header and rows of as many cells, all of them text."""

    path: Path
    columns: Sequence[str]
    rows: Mapping[int, Sequence[str]]  # by the number of their line
    sheet: str | None = None
    # Whether 3,5 is a number, as in the files that spreadsheets write where it is.
    decimal_comma: bool = False

    @property
    def is_list(self) -> bool:
        return tuple(self.columns) == _LIST_COLUMNS

    def find_column(self, names: Iterable[str]) -> int | None:
        return next(iter(self.find_columns(names)), None)

    def find_columns(self, names: Iterable[str]) -> tuple[int, ...]:
        """Indices of the first of `names` that is a column, or all of those that `a,b*` means."""
        columns = [_simple(column) for column in self.columns]
        for name in names:
            if _simple(name) in columns:
                return (columns.index(_simple(name)),)
            each = [fnmatch.filter(columns, _simple(pattern)) for pattern in name.split(",")]
            if all(each):
                return tuple(dict.fromkeys(columns.index(one) for own in each for one in own))
        return ()

    def first_of_names(self, scores: Sequence[int]) -> int | None:
        """Index of the first column that may hold names: of no scores, and no index of the rows."""
        first = next(iter(self.rows.values()))
        left = [column for column in range(len(self.columns)) if column not in scores]
        texts = [column for column in left if not _is_number(first[column])]
        return next(iter(texts or left[:1]), None)

    def place(self, row: int) -> str:
        sheet = "" if self.sheet is None else f", sheet {self.sheet}"
        return f"{self.path}{sheet}, row {row}"

    def text(self, row: int, column: int) -> str:
        """A cell that must not be empty."""
        cell = self.rows[row][column]
        if not cell:
            raise DatasetError(
                f"{self.place(row)}: expected a value in column {self.columns[column]!r}"
            )
        return cell

    def number(self, row: int, column: int) -> float:
        """A cell that must be a finite number."""
        cell = self.text(row, column)
        number = _finite(cell.replace(",", ".") if self.decimal_comma else cell)
        if number is None:
            raise DatasetError(
                f"{self.place(row)}: expected a finite number in column"
                f" {self.columns[column]!r}, got {cell!r}"
            )
        return number


def read_tables(path: Path) -> tuple[Table, ...]:
    """Every table of an annotation file; only a spreadsheet can have more than one."""
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
    """A four-column list as FAST-VQA has it, whatever its first row looks like.

    It has no header; durations, frame rates and scores are -1 where unknown.
    """
    try:
        # Many editors end a file with an empty line.
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: expected a readable UTF-8 label list ({error})") from error
    if not lines:
        raise DatasetError(f"{path}: expected at least one row, the list is empty")
    rows = {n: [cell.strip() for cell in line.split(",")] for n, line in enumerate(lines, start=1)}
    table = Table(path, _LIST_COLUMNS, rows)
    for row, cells in rows.items():
        if len(cells) != len(_LIST_COLUMNS) or not cells[0]:
            raise DatasetError(
                f"{table.place(row)}: expected {', '.join(_LIST_COLUMNS)!r}, got"
                f" {lines[row - 1]!r} (cells are divided by commas; --dataset csv takes other"
                " tables of names and scores)"
            )
        for column in range(1, len(cells)):
            table.number(row, column)
    return table


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

    It is what gives every row as many cells, or else what divides the first row. Blanks are only
    tried where nothing else does, since names may have some: they divide words below a header of as
    many words; otherwise a name with blanks is one cell, too.
    """
    uneven = None
    for separator in ("\t", ";", ","):
        lines = _read_csv(path, text, separator)
        widths = [len(cells) for _, cells in lines if any(cell.strip() for cell in cells)]
        if widths and widths[0] > 1:
            uneven = lines, separator
            if len(set(widths)) == 1:
                return uneven
    if uneven is not None:
        return uneven
    by_line = [line.split() for line in io.StringIO(text, newline="")]
    filled = [words for words in by_line if words]
    if len({len(words) for words in filled}) == 1 and not any(map(_is_number, filled[0])):
        return list(enumerate(by_line, start=1)), BLANK
    pairs = map(_name_and_score, io.StringIO(text, newline=""))
    return list(enumerate(pairs, start=1)), BLANK


def _name_and_score(line: str) -> list[str]:
    """The words, but those around a single number at the beginning or the end are one name."""
    words = line.split()
    numbers = [_is_number(word) for word in words]
    if sum(numbers) != 1 or not (numbers[0] or numbers[-1]):
        return words
    return line.rsplit(maxsplit=1) if numbers[-1] else line.split(maxsplit=1)


def _read_csv(path: Path, text: str, separator: str) -> list[Line]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        return [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise DatasetError(
            f"{path}, row {reader.line_num}: expected a CSV row ({error})"
        ) from error


def columns_without_header(first: Sequence[str], decimal_comma: bool) -> tuple[str, ...]:
    """The columns of pairs that begin in the first row; none if that is a header."""
    numbers = [_is_number(cell.replace(",", ".") if decimal_comma else cell) for cell in first]
    if len(first) != len(_PAIR_COLUMNS) or not any(numbers):
        return ()
    return _PAIR_COLUMNS if numbers[1] else _PAIR_COLUMNS[::-1]


def _is_list_row(cells: Sequence[str]) -> bool:
    return len(cells) == len(_LIST_COLUMNS) and all(_is_number(cell) for cell in cells[1:])


def _is_number(cell: str) -> bool:
    return _finite(cell) is not None


def _finite(text: str) -> float | None:
    """A number as annotation files have it, such as -1, 3.5 or 2e-3; None if it is no such."""
    if "_" in text or not text.isascii():  # `float` takes 1_5 and digits of other scripts, too
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _read_workbook(path: Path, content: bytes) -> tuple[Table, ...]:
    sheets: dict[str, list[list[str]]] = {}
    try:
        workbook = load_workbook(io.BytesIO(content), read_only=True, data_only=True)
        for sheet in workbook.worksheets:
            rows = sheet.iter_rows(values_only=True)
            sheets[sheet.title] = [["" if v is None else str(v) for v in row] for row in rows]
    except Exception as error:  # openpyxl raises whatever the damage leads to
        raise DatasetError(f"{path}: expected an .xlsx spreadsheet ({error})") from error
    filled = {title: rows for title, rows in sheets.items() if any(map(any, rows))}
    if not filled:
        raise DatasetError(f"{path}: expected a header and at least one row, all sheets are empty")
    return tuple(_to_table(path, enumerate(rows, start=1), title) for title, rows in filled.items())


def _read_matlab(path: Path) -> Table:
    try:
        variables: Mapping[str, Any] = loadmat(str(path), appendmat=False)
    except Exception as error:  # scipy raises whatever the damage leads to
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
    path: Path, lines: Iterable[Line], sheet: str | None = None, decimal_comma: bool = False
) -> Table:
    """The first line that is not empty is the header."""
    stripped = {number: [cell.strip() for cell in cells] for number, cells in lines}
    filled = [(number, cells) for number, cells in stripped.items() if any(cells)]
    if len(filled) < 2:
        raise DatasetError(f"{path}: expected a header and at least one row")
    (_, columns), *rows = filled
    table = Table(path, columns, dict(rows), sheet, decimal_comma)
    for number, cells in rows:
        if len(cells) != len(table.columns):
            raise DatasetError(
                f"{table.place(number)}: expected {len(table.columns)} cells like the header, got"
                f" {len(cells)}"
            )
    return table


def _simple(column: str) -> str:
    """Upper and lower case, blanks and underscores make no difference."""
    return re.sub(r"[\s_]", "", column).lower()
