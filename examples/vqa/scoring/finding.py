"""Which files are to be scored: those named, those in folders, those on lists."""

import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from vqa.datasets.annotations import NAME_COLUMNS
from vqa.datasets.media import Listing, find_file, list_files
from vqa.datasets.specs import SPECS
from vqa.datasets.tables import BLANK, DatasetError, Line, Table, columns_without_header, divided
from vqa.io.files import MediaKind, kind_by_name

_LISTS = (".txt", ".csv", ".tsv")


@dataclass(frozen=True)
class Found:
    path: Path
    error: str | None = None  # why it cannot even be tried


@dataclass
class Search:
    """What was found, each file once, in the order found; what else was in folders, by sort."""

    files: list[Found] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)


def find_files(paths: Iterable[Path], kind: MediaKind) -> Search:
    """The files that paths lead to.

    A folder is searched with all below it, by name, links included: what is called an image is
    passed over where videos are wanted and the other way round, and so is what is called neither or
    begins with a dot. A path that ends in .txt, .csv or .tsv is a list (see `read_file_list`).
    Everything else, and everything on a list, is tried whatever its name.
    """
    search, seen = Search(), set()
    for path in paths:
        led_to: Iterable[Found]
        if path.is_dir():
            led_to = _below(path, kind, search.passed_over)
        elif path.suffix.lower() in _LISTS and path.is_file():
            led_to = read_file_list(path)
        else:
            led_to = [_checked(path)]
        for found in led_to:
            place = os.path.abspath(found.path)
            if place not in seen:
                seen.add(place)
                search.files.append(found)
    return search


def _below(folder: Path, kind: MediaKind, passed_over: Counter[str]) -> Iterator[Found]:
    """What is in a folder, then what is below it; a folder that several ways lead to, once."""
    unreadable: list[OSError] = []
    entered: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, onerror=unreadable.append, followlinks=True):
        state = os.stat(place)
        if (state.st_dev, state.st_ino) in entered:  # a link that leads back
            folders.clear()
            continue
        entered.add((state.st_dev, state.st_ino))
        passed_over.update("hidden" for name in (*folders, *names) if name.startswith("."))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            own_kind = kind_by_name(Path(name))
            if own_kind == kind:
                yield _checked(Path(place, name))
            else:
                ending = Path(name).suffix.lower() or "without ending"
                passed_over[f"{own_kind}s" if own_kind else ending] += 1
    yield from (Found(Path(error.filename), error.strerror) for error in unreadable)


def _checked(path: Path, place: str = "") -> Found:
    try:
        path.stat()
    except (OSError, ValueError) as error:
        return Found(path, f"{place}{getattr(error, 'strerror', None) or error}")
    # To read from a pipe or a terminal would wait for ever.
    return Found(path, None if path.is_file() else f"{place}expected a file")


def read_file_list(path: Path) -> list[Found]:
    """The files that a list names, whether they are there or not.

    A list is a text with a name on every line, or a table of cells divided by commas, tabs,
    semicolons or blanks: with a header that calls a column path, name, file or the like, or
    without one and the name in the first column (of a number and a name, the second). So
    four-column lists, tables of opinion scores and what `csv.writer` writes are lists, too. Names
    are looked for beside the list, in its usual sub-folders, and from where the program was called.
    """
    try:
        # Names need not be UTF-8: they come back as the bytes that they were.
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise DatasetError(f"{path}: expected a readable list of files ({error})") from error
    if "\0" in text:
        raise DatasetError(f"{path}: expected a list of files as UTF-8 text, got binary data")
    listing = cache(list_files)
    listed = [_located(path, names, number, listing) for number, names in _names(path, text)]
    if not listed:
        raise DatasetError(f"{path}: expected at least one file name, the list is empty")
    return listed


def _names(path: Path, text: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Number of every line that is not empty, and what may be the name on it, likeliest first."""
    lines, separator = divided(path, text)
    filled = [(number, cells) for number, cells in lines if any(cell.strip() for cell in cells)]
    if not filled:
        return
    whole = list(io.StringIO(text, newline=""))
    column, header = _column(path, filled[0], separator)
    for number, cells in filled[header:]:
        line = whole[number - 1].strip()
        cell = cells[column].strip() if column < len(cells) else ""
        # A name that holds a comma, in a list that knows no cells, is the whole line; of blanks,
        # it is likelier that they are in a name than that they divide cells.
        names = (line, cell) if separator == BLANK else (cell, line)
        yield number, tuple(name for name in dict.fromkeys(names) if name)


def _column(path: Path, first: Line, separator: str) -> tuple[int, int]:
    """Index of the column of names, and how many lines come before the first name."""
    columns = tuple(cell.strip() for cell in first[1])
    header = Table(path, columns, {})
    named = header.find_column(NAME_COLUMNS)
    scored = header.find_column(SPECS["csv"].scores)
    # The blank of a name like "video 1.mp4" makes no header.
    in_a_name = separator == BLANK and len(columns) > 1 and None in (named, scored)
    if in_a_name or named is scored is None:
        pairs = columns_without_header(columns, decimal_comma=separator != ",")
        return (pairs.index("path") if pairs else 0), 0
    return int(scored == 0) if named is None else named, 1


def _located(path: Path, names: Sequence[str], number: int, listing: Listing) -> Found:
    """The file if there is one, otherwise where it was looked for first."""
    roots = [*(path.parent / folder for folder in SPECS["csv"].folders), Path()]
    names = [os.path.expanduser(name) for name in names]
    names += [name.replace("\\", "/") for name in names if "\\" in name]  # as Windows writes them
    tried = [root / name for name in names for root in roots]
    place = f"{path}, row {number}: "
    for file in tried:
        with suppress(OSError):  # a folder must not be read, a line is longer than names can be
            if found := find_file(file, listing):
                return _checked(found, place)
    return _checked(tried[0], place)
