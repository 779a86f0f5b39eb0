"""Files that are there completely or not at all, belong to one command, and what they are called.

What a file holds is decided by decoding it; its name decides what a search of folders tries.
"""

import csv
import hashlib
import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Literal, TextIO
from uuid import uuid4

from filelock import FileLock, Timeout

_LONGEST_NAME = 255  # bytes that file systems take


def shown(path: Path) -> str:
    """A path for messages, on one line that can be printed whatever bytes its name has."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(path))


@contextmanager
def writing(path: Path, through: Path | None = None) -> Iterator[None]:
    """Around the writing of a file: errors of the system name it, as those of a full disk do not.

    `through` is the temporary file that is written in its place, if one is.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save hides what the system said behind an error of its own.
        cause = error if isinstance(error, OSError) else error.__context__
        ours = (None, str(path), str(through or path))
        if not isinstance(cause, OSError) or cause.filename not in ours:
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends well.

    Whoever reads `path` meanwhile, or after this process was killed, finds the old file or none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Numbers of processes are the same on several machines with one file system.
    name = os.fsencode(f".{uuid4().hex}.{path.name}")[:_LONGEST_NAME]
    unfinished = path.with_name(os.fsdecode(name))
    try:
        with writing(path, unfinished):
            yield unfinished
            os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def open_csv(path: Path, mode: Literal["w", "a"]) -> TextIO:
    r"""A CSV file to write; bytes of names that are not UTF-8 stand in it as \udc80 to \udcff."""
    return path.open(mode, encoding="utf-8", errors="backslashreplace", newline="")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file, completely or not at all."""
    with replacing(path) as unfinished, open_csv(unfinished, "w") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(header)
        table.writerows(rows)


def sha256(path: Path) -> str:
    """Digest of a file's content, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def file_state(path: Path) -> tuple[int, int] | None:
    """Size in bytes and time of change in nanoseconds of a file; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def digest(value: object) -> str:
    """SHA-256 of plain values as JSON has them, hexadecimal; the order of keys does not count."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text and the end of its last line, completely or not at all."""
    with replacing(path) as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8", newline="\n")


def write_json(path: Path, document: Mapping[str, object]) -> None:
    """Write a document for people and programs; null stands for numbers that JSON lacks."""
    write_text(path, json.dumps(_without_nan(document), indent=2, ensure_ascii=False))


def _without_nan(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value


MediaKind = Literal["video", "image"]

_VIDEOS = (
    *("3g2", "3gp", "asf", "avi", "divx", "dv", "f4v", "flv", "h264", "h265", "hevc"),
    *("ivf", "m1v", "m2ts", "m2v", "m4v", "mjpeg", "mjpg", "mkv", "mov", "mp4", "mpe"),
    *("mpeg", "mpg", "mts", "mxf", "nut", "obu", "ogm", "ogv", "qt", "rm", "rmvb"),
    *("ts", "vob", "webm", "wmv", "wtv", "y4m"),
)
_IMAGES = (
    *("apng", "avif", "bmp", "dds", "gif", "heic", "heif", "jfif", "jp2", "jpe", "jpeg"),
    *("jpg", "pbm", "pcx", "pgm", "png", "pnm", "ppm", "sgi", "tga", "tif", "tiff", "webp"),
)


def kind_by_name(path: Path) -> MediaKind | None:
    """What a file is called; None if neither video nor image."""
    ending = path.suffix.lower().removeprefix(".")
    if ending in _VIDEOS:
        return "video"
    return "image" if ending in _IMAGES else None


class InUseError(ValueError):
    """Another command that is still running writes there; the message names it."""


def owned_folder(folder: Path) -> AbstractContextManager[None]:
    """A folder, made if need be, that belongs to this process for the length of the block."""
    return _owned(folder, folder / ".lock")


def owned_file(path: Path) -> AbstractContextManager[None]:
    """The same for a file, whose folder is made if it is not there."""
    return _owned(path, path.with_name(f".{path.name}.lock"))


@contextmanager
def _owned(place: Path, file: Path) -> Iterator[None]:
    """The system frees the lock when a process ends; the file that is locked stays."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(file), file.with_suffix(".owner")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        try:
            told = owner.read_text(encoding="utf-8")
        except OSError:  # it may not be there yet
            told = "another one"
        raise InUseError(
            f"{shown(place)}: expected that no other command writes there, {told} does:"
            " wait for its end, or choose another --output"
        ) from None
    try:
        with writing(place, owner):
            owner.write_text(
                f"{shorten(shlex.join(sys.argv), 200)!r} (process {os.getpid()} on"
                f" {platform.node()})",
                encoding="utf-8",
                errors="backslashreplace",
            )
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()
