"""Processes side by side, one core each, and the bar that shows how far they are."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import NoReturn

import torch
from tqdm import tqdm


def _nothing() -> None:
    pass


@contextmanager
def process_pool(
    processes: int, begin: Callable[..., None] = _nothing, arguments: tuple[object, ...] = ()
) -> Iterator[ProcessPoolExecutor]:
    """Freshly started processes for the length of the block; at an error no further job is begun.

    Each computes on one thread, since more would only fight over the cores, and none outlives this
    process, however that ends.

    Args:
        processes: how many.
        begin: called in each before its first job.
        arguments: what it is called with.
    """
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _begin, (begin, arguments))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(begin: Callable[..., None], arguments: tuple[object, ...]) -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    begin(*arguments)


def _end_with_parent() -> None:
    """Otherwise a process whose parent was killed would wait for work forever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


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
