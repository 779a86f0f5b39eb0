"""Processes side by side, one core each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from threading import Thread

import torch


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
