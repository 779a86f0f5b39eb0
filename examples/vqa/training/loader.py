"""From labelled files on disk to batches, read by worker processes.

Which samples a batch holds, and where each gets its random numbers from, are functions of seed,
epoch and sample alone. So a run that goes on in the middle of an epoch sees what it would have
seen, whatever the number of workers, and several processes share the batches of one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from vqa.datasets import Sample


@dataclass(frozen=True)
class Draw:
    """One sample to read: its number, and the seed of its random numbers.

    Without a seed the sample is read as for testing.
    """

    index: int
    seed: int | None = None

    def generator(self) -> torch.Generator | None:
        """A generator of this draw's own; None without a seed."""
        return None if self.seed is None else torch.Generator().manual_seed(self.seed)


class TrainingDraws(Sampler[list[Draw]]):
    """The batches of one epoch after another, each epoch in an order of its own.

    Args:
        samples: number of training samples.
        batch: samples per step over all processes; the last batch of an epoch may hold fewer.
        seed: decides every order and every sample's random numbers.
        rank: number of this process, which takes every `processes`-th sample of a batch.
        processes: how many share the batches.
        drop_last: leave out a last batch that is not full. One with fewer than two samples, or
            fewer than there are processes, is always left out: it has no pair to rank.

    Raises:
        ValueError: fewer samples than the smallest batch needs, or a batch that does not give
            every process as many samples.

    >>> draws = TrainingDraws(samples=5, batch=2, seed=0)
    >>> [len(batch) for batch in draws]
    [2, 2]
    """

    def __init__(
        self,
        samples: int,
        batch: int,
        seed: int,
        rank: int = 0,
        processes: int = 1,
        drop_last: bool = False,
    ) -> None:
        if batch % processes:
            raise ValueError(f"batch: expected a multiple of {processes} processes, got {batch}")
        self._sizes = _batch_sizes(samples, batch, batch if drop_last else max(2, processes))
        if not self._sizes:
            raise ValueError(f"samples: expected at least one batch of {batch}, got {samples}")
        self._samples, self._seed = samples, seed
        self._rank, self._processes = rank, processes
        self._epoch, self._first = 0, 0

    def start(self, epoch: int, first: int = 0) -> None:
        """Let the next iteration be that of `epoch`, from its batch number `first` on."""
        self._epoch, self._first = epoch, first

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return len(self._sizes)

    def __iter__(self) -> Iterator[list[Draw]]:
        order = np.random.default_rng((self._seed, self._epoch)).permutation(self._samples)
        begin = sum(self._sizes[: self._first])
        for size in self._sizes[self._first :]:
            mine = order[begin : begin + size][self._rank :: self._processes]
            yield [Draw(int(index), self._seed_of(int(index))) for index in mine]
            begin += size

    def _seed_of(self, index: int) -> int:
        mixed = np.random.SeedSequence((self._seed, self._epoch, index))
        return int(mixed.generate_state(1, np.uint64)[0] >> np.uint64(1))  # torch takes int64


def every_sample(samples: int, rank: int = 0, processes: int = 1) -> list[Draw]:
    """Every `processes`-th sample once, read as for testing."""
    return [Draw(index) for index in range(rank, samples, processes)]


def _batch_sizes(samples: int, batch: int, smallest: int) -> list[int]:
    sizes = [batch] * (samples // batch)
    rest = samples % batch
    return [*sizes, rest] if rest >= smallest else sizes


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
