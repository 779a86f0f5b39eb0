"""From labelled files on disk to batches, read by worker processes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from vqa.datasets import Sample
from vqa.training.sampler import Draw

Inputs = tuple[Tensor, ...]
# What a model takes for one file: a random view of it, or without a generator the test view.
Read = Callable[[Path, torch.Generator | None], Inputs]


@dataclass(frozen=True)
class Batch:
    """Some samples side by side."""

    inputs: Inputs
    scores: Tensor
    """float32 [B]"""
    indices: tuple[int, ...]
    bad_files: Mapping[int, str] = field(default_factory=dict)
    """What is wrong with the samples that could not be read and were left out, by number."""

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        inputs = tuple(tensor.to(device, non_blocking=True) for tensor in self.inputs)
        return replace(self, inputs=inputs, scores=self.scores.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in memory from which a GPU copies without waiting."""
        inputs = tuple(tensor.pin_memory() for tensor in self.inputs)
        return replace(self, inputs=inputs, scores=self.scores.pin_memory())


class LabelledFiles(Dataset[Batch]):
    """Labelled files as batches of one.

    Args:
        samples: files and opinion scores.
        read: turns one file into what the model takes.
        skip_bad_files: leave a file out that cannot be read instead of stopping; the batch names
            it.
    """

    def __init__(self, samples: Sequence[Sample], read: Read, skip_bad_files: bool = False) -> None:
        self.samples = tuple(samples)
        self._read, self._skip = read, skip_bad_files

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, draw: Draw) -> Batch:
        sample = self.samples[draw.index]
        try:
            # As in a worker, so that a file gives the same bits however many there are.
            with computing_threads(1):
                inputs = self._read(sample.path, draw.generator())
        except ValueError as error:  # what every reader of ours raises for a bad file
            if not self._skip:
                raise
            return Batch((), torch.empty(0), (), {draw.index: str(error)})
        return Batch(inputs, torch.tensor(sample.score, dtype=torch.float32), (draw.index,))


def collate(singles: Sequence[Batch]) -> Batch:
    """One batch of several batches of one; empty if none of them could be read."""
    bad_files = {index: why for single in singles for index, why in single.bad_files.items()}
    good = [single for single in singles if len(single)]
    if not good:
        return Batch((), torch.empty(0), (), bad_files)
    inputs = tuple(default_collate([single.inputs for single in good]))
    scores = torch.stack([single.scores for single in good])
    return Batch(inputs, scores, tuple(single.indices[0] for single in good), bad_files)


def training_loader(
    files: LabelledFiles, draws: Iterable[list[Draw]], workers: int, pin_memory: bool
) -> DataLoader[Batch]:
    """Batches of the given draws. The workers stay from one epoch to the next."""
    return _loader(files, draws, workers, pin_memory, persistent=True)


def evaluation_loader(
    files: LabelledFiles, draws: Sequence[Draw], batch: int, workers: int, pin_memory: bool
) -> DataLoader[Batch]:
    """Every draw once, in order, `batch` at a time."""
    batches = [list(draws[first : first + batch]) for first in range(0, len(draws), batch)]
    return _loader(files, batches, min(workers, len(batches)), pin_memory, persistent=False)


def _loader(
    files: LabelledFiles,
    batches: Iterable[list[Draw]],
    workers: int,
    pin_memory: bool,
    persistent: bool,
) -> DataLoader[Batch]:
    with warnings.catch_warnings():
        # More than there are cores is a matter of taste, as reading waits for disks, too.
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        return DataLoader(
            files,
            batch_sampler=batches,
            num_workers=workers,
            persistent_workers=persistent and workers > 0,
            collate_fn=collate,
            pin_memory=pin_memory,
            worker_init_fn=_begin_worker,
            # Of its own, since the loader draws a number each time it begins: where a run stopped
            # must not show in the model's random numbers.
            generator=torch.Generator(),
            multiprocessing_context="spawn" if workers else None,
        )


def _begin_worker(worker: int) -> None:
    """More threads in every worker would only fight over the cores."""
    torch.set_num_threads(1)


@contextmanager
def computing_threads(number: int) -> Iterator[None]:
    """The block, in which torch computes on so many threads, which decides last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
