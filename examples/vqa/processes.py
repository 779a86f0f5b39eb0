"""Processes side by side, one core each, and the bar that shows how far they are."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any, NoReturn

import torch
from tqdm import tqdm


@contextmanager
def process_pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """So many freshly started processes; at an error in the block no further job is begun.

    Each computes on one thread, since more would only fight over the cores, and none outlives this
    process, however that ends.
    """
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _begin)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    """Otherwise a process whose parent was killed would wait for work forever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def progress_bar(description: str, total: int, unit: str, **options: Any) -> tqdm[NoReturn]:
    """A bar of tqdm on stderr; rarely refreshed where each refresh is a new line in a log."""
    seconds = 0.1 if sys.stderr.isatty() else 5.0
    return tqdm(desc=description, total=total, unit=unit, mininterval=seconds, **options)
