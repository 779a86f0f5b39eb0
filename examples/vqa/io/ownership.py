"""What a running command writes belongs to it alone, until it ends, however it ends."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from textwrap import shorten

from filelock import FileLock, Timeout

from vqa.io.files import shown, writing


class InUseError(ValueError):
    """Another command that is still running writes there; the message names it."""


def owned_folder(folder: Path) -> AbstractContextManager[None]:
    """A folder that belongs to this process for the length of the block; made if it is not there.

    Raises:
        InUseError: it belongs to another one.
    """
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
