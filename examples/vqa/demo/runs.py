"""Trainings by several methods from several seeds, side by side, each done once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from typing import Any

from vqa.datasets import DataSet
from vqa.io.files import digest
from vqa.processes import process_pool
from vqa.progress import progress_bar
from vqa.store import Results, Store
from vqa.training.identity import identity
from vqa.training.main import run_script
from vqa.training.settings import Settings, plain
from vqa.training.split_samples import parts_of
from vqa.training.task import Task

# Makes the task of the settings of its script.
TaskOf = Callable[[Any], Task]


@dataclass(frozen=True)
class Run:
    """One call of a training script, by what decides its result."""

    settings: Settings
    name: str
    split: int


def run_of(settings: Settings, task: TaskOf, dataset: DataSet, source: object) -> Run:
    """A run on the first split that the settings ask for.

    Args:
        settings: of the script; where the results go is decided by the store.
        task: makes the task of such settings.
        dataset: what the settings name, loaded.
        source: what else decides a result, as plain values: code and versions.
    """
    split = settings.splits[0]
    parts = parts_of(dataset, {}, settings, split)
    samples = {"train": parts.train, "validation": parts.validation, "test": parts.test}
    known = identity(settings, split, {**samples, **parts.also}, task(settings).files)
    decides = digest([plain(replace(settings, output=None)), known, source])
    return Run(settings, f"{settings.method}-{settings.seed}-{decides[:16]}", split)


def run_all(runs: Sequence[Run], task: TaskOf, store: Store, processes: int) -> list[Results]:
    """The results of all runs, from the store where they are finished already.

    What a run prints is in its log. A small model gains nothing from a second thread, and with one
    thread a result does not depend on how many runs go on beside it.

    Args:
        runs: what to do.
        task: makes the task of a run's settings; a function that can be sent to a process.
        store: where runs are kept.
        processes: runs side by side, in processes of their own unless it is 1.
    """
    missing = [run for run in runs if store.results(run) is None]
    with progress_bar("training", len(missing), "run") as bar:
        if processes == 1:
            for run in missing:
                _do(run, task, store)
                bar.update()
        elif missing:
            with process_pool(processes) as pool:
                for future in as_completed([pool.submit(_do, run, task, store) for run in missing]):
                    future.result()
                    bar.update()
    found = [store.results(run) for run in runs]
    return [results for results in found if results is not None]


def _do(run: Run, task: TaskOf, store: Store) -> None:
    store.note(run, {"settings": plain(run.settings)})
    settings = replace(run.settings, output=store.folder(run))
    with (
        store.log(run).open("a", encoding="utf-8") as log,
        redirect_stdout(log),
        redirect_stderr(log),
    ):
        run_script(settings, task(settings))
