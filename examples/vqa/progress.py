"""The progress bar of the examples."""

from __future__ import annotations

import sys
from typing import NoReturn

from tqdm import tqdm

# Every refresh of a bar is a new line in a log.
_SECONDS_ON_SCREEN, _SECONDS_IN_LOG = 0.1, 5.0


def progress_bar(
    description: str,
    total: int,
    unit: str,
    leave: bool = True,
    disable: bool = False,
    initial: int = 0,
) -> tqdm[NoReturn]:
    """A bar on stderr, to be used in a `with` block and moved by `update()`.

    Args:
        description: what stands before it.
        total: updates until it is full.
        unit: what an update is.
        leave: whether it stays on the screen when it is full.
        disable: show nothing, as in all processes but the first.
        initial: updates that were made before.
    """
    seconds = _SECONDS_ON_SCREEN if sys.stderr.isatty() else _SECONDS_IN_LOG
    return tqdm(
        desc=description,
        total=total,
        unit=unit,
        mininterval=seconds,
        leave=leave,
        disable=disable,
        initial=initial,
    )
