"""Many runs on few cores: one process per core, one thread per process, one progress bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import (
    FIRST_EXCEPTION,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from contextlib import AbstractContextManager
from multiprocessing import get_context
from multiprocessing.sharedctypes import Synchronized

import numpy as np
import torch
from numpy.typing import NDArray

from vqa.demo.experiment import ExperimentSettings, Run, run_method
from vqa.demo.run_store import RunStore
from vqa.processes import process_pool
from vqa.progress import progress_bar
from vqa.sampling.tiny_fast_vqa import LumaClips, PlaneClips, to_planes
from vqa.synthetic.mini_ugc import Part
from vqa.training.perturbation import Method

_Arrays = Mapping[Part, tuple[NDArray[np.uint8], NDArray[np.float32]]]


def run_all(
    jobs: Sequence[tuple[Method, int]],
    settings: ExperimentSettings,
    clips: Mapping[Part, LumaClips],
    store: RunStore,
    processes: int,
) -> list[Run]:
    """Every (method, seed), from the store where it is finished already, otherwise trained.

    A small model gains nothing from a second thread, and with one thread a run's result does not
    depend on how many run beside it.
    """
    missing = [job for job in jobs if store.load(*job) is None]
    if missing:
        _train_missing(missing, settings, clips, store, processes)
    runs = [store.load(*job) for job in jobs]
    return [run for run in runs if run is not None]


def _train_missing(
    jobs: Sequence[tuple[Method, int]],
    settings: ExperimentSettings,
    clips: Mapping[Part, LumaClips],
    store: RunStore,
    processes: int,
) -> None:
    context = get_context("spawn")
    steps: Synchronized[int] = context.Value("q", 0)
    # As arrays, because tensors would travel through shared memory, which containers are short of.
    arrays = {part: (c.luma.numpy(), c.scores.numpy()) for part, c in clips.items()}
    held = (arrays, store, steps)
    pool: AbstractContextManager[Executor]
    if processes == 1:  # starting a process would take longer than a short run
        pool = ThreadPoolExecutor(1, initializer=_start_worker, initargs=held)
    else:
        pool = process_pool(processes, _start_worker, held)
    with pool as executor:
        futures = [executor.submit(_work, method, seed, settings) for method, seed in jobs]
        try:
            _show_progress(futures, steps, settings.training.steps)
        finally:
            executor.shutdown(cancel_futures=True)


def _show_progress(
    futures: Sequence[Future[None]], steps: Synchronized[int], steps_per_run: int
) -> None:
    with progress_bar("training", len(futures) * steps_per_run, "step") as bar:
        pending: set[Future[None]] = set(futures)
        while pending:
            done, pending = wait(pending, timeout=0.2, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            bar.set_postfix_str(f"{len(futures) - len(pending)}/{len(futures)} runs", refresh=False)
            bar.update(steps.value - bar.n)


class _Worker:
    """What a worker process holds between its jobs."""

    parts: Mapping[Part, PlaneClips]
    store: RunStore
    steps: Synchronized[int]


def _start_worker(arrays: _Arrays, store: RunStore, steps: Synchronized[int]) -> None:
    torch.set_num_threads(1)
    _Worker.parts = {
        part: to_planes(LumaClips(torch.from_numpy(luma), torch.from_numpy(scores)))
        for part, (luma, scores) in arrays.items()
    }
    _Worker.store, _Worker.steps = store, steps


def _work(method: Method, seed: int, settings: ExperimentSettings) -> None:
    _Worker.store.save(*run_method(method, seed, settings, _Worker.parts, _count_step))


def _count_step() -> None:
    with _Worker.steps.get_lock():
        _Worker.steps.value += 1
