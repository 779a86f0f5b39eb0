"""Which files are to be scored: those named, those in folders, those on lists."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vqa.datasets.names import read_file_list
from vqa.io.media_names import MediaKind, kind_by_name

_LISTS = (".txt", ".csv", ".tsv")


@dataclass(frozen=True)
class Found:
    """A file that was asked for."""

    path: Path
    error: str | None = None
    """Why it cannot even be tried."""


@dataclass
class Search:
    """What was found, each file once, in the order found."""

    files: list[Found] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    """What was in folders and is not scored: how many files of which sort."""


def find_files(paths: Iterable[Path], kind: MediaKind) -> Search:
    """The files that paths lead to.

    A folder is searched with all below it, by name, links included: what is called an image is
    passed over where videos are wanted and the other way round, and so is what is called neither or
    begins with a dot. A path that ends in .txt, .csv or .tsv is a list (see `read_file_list`).
    Everything else, and everything on a list, is tried whatever its name.

    Raises:
        DatasetError: a list cannot be used.
    """
    search, seen = Search(), set()
    for path in paths:
        for found in _lead_to(path, kind, search.passed_over):
            place = os.path.abspath(found.path)
            if place not in seen:
                seen.add(place)
                search.files.append(found)
    return search


def _lead_to(path: Path, kind: MediaKind, passed_over: Counter[str]) -> Iterator[Found]:
    if path.is_dir():
        yield from _below(path, kind, passed_over, set())
    elif path.suffix.lower() in _LISTS and path.is_file():
        for listed in read_file_list(path):
            yield _checked(listed.path, f"{listed.place}: ")
    else:
        yield _checked(path)


def _below(
    folder: Path, kind: MediaKind, passed_over: Counter[str], entered: set[tuple[int, int]]
) -> Iterator[Found]:
    """What is in a folder, then what is below it; a folder that several ways lead to, once."""
    try:
        state = folder.stat()
        names = sorted(os.listdir(folder))
    except OSError as error:
        yield Found(folder, error.strerror)
        return
    if (state.st_dev, state.st_ino) in entered:  # a link that leads back
        return
    entered.add((state.st_dev, state.st_ino))
    folders = []
    for entry in map(folder.joinpath, names):
        if entry.name.startswith("."):
            passed_over["hidden"] += 1
        elif entry.is_dir():
            folders.append(entry)
        elif kind_by_name(entry) == kind:
            yield _checked(entry)
        else:
            passed_over[_sort(entry)] += 1
    for below in folders:
        yield from _below(below, kind, passed_over, entered)


def _sort(file: Path) -> str:
    kind = kind_by_name(file)
    return f"{kind}s" if kind else file.suffix.lower() or "without ending"


def _checked(path: Path, place: str = "") -> Found:
    try:
        path.stat()
    except (OSError, ValueError) as error:
        return Found(path, f"{place}{getattr(error, 'strerror', None) or error}")
    # To read from a pipe or a terminal would wait for ever.
    return Found(path, None if path.is_file() else f"{place}expected a file")
