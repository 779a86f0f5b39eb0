"""From labelled files on disk to batches, read by worker processes.

Which samples a batch holds, and where each gets its random numbers from, are functions of seed,
epoch and sample alone. So a run that goes on in the middle of an epoch sees what it would have
seen, whatever the number of workers, and several processes share the batches of one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from vqa.datasets import Sample
from vqa.training.settings import Settings

Inputs = tuple[Tensor, ...]
# What a model takes for one file: a random view of it, or without a generator the test view.
Read = Callable[[Path, torch.Generator | None], Inputs]


@dataclass(frozen=True)
class Draw:
    """One sample to read: its number, and the seed of its random numbers; none in testing."""

    index: int
    seed: int | None = None

    def generator(self) -> torch.Generator | None:
        return None if self.seed is None else torch.Generator().manual_seed(self.seed)


def training_draws(
    samples: int,
    batch: int,
    seed: int,
    epoch: int = 0,
    rank: int = 0,
    processes: int = 1,
    drop_last: bool = False,
) -> list[list[Draw]]:
    """The batches of an epoch, each of `batch` samples, every `processes`-th for this process.

    The last batch may hold fewer; it is left out with `drop_last`, and always if it has fewer than
    two, which make no pair to rank, or fewer than there are processes.
    """
    if batch % processes:
        raise ValueError(f"batch: expected a multiple of {processes} processes, got {batch}")
    smallest = batch if drop_last else max(2, processes)
    order = np.random.default_rng((seed, epoch)).permutation(samples).tolist()
    batches = []
    for begin in range(0, samples, batch):
        whole = order[begin : begin + batch]
        if len(whole) >= smallest:
            mine = whole[rank::processes]
            batches.append([Draw(index, _seed_of(seed, epoch, index)) for index in mine])
    if not batches:
        raise ValueError(f"samples: expected at least one batch of {batch}, got {samples}")
    return batches


def _seed_of(*decides: int) -> int:
    mixed = np.random.SeedSequence(decides)
    return int(mixed.generate_state(1, np.uint64)[0] >> np.uint64(1))  # torch takes int64


def draws_in_order(
    samples: int, batch: int = 1, rank: int = 0, processes: int = 1
) -> list[list[Draw]]:
    """Batches of every `processes`-th sample, once and as for testing."""
    draws = [Draw(index) for index in range(rank, samples, processes)]
    return [draws[first : first + batch] for first in range(0, len(draws), batch)]


@dataclass(frozen=True)
class Batch:
    """Some samples side by side; empty if none of them could be read."""

    inputs: Inputs
    scores: Tensor  # float32 [B]
    indices: tuple[int, ...]
    bad_files: Mapping[int, str]  # what is wrong with the samples that could not be read, by number

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device) -> Batch:
        inputs = tuple(tensor.to(device, non_blocking=True) for tensor in self.inputs)
        return replace(self, inputs=inputs, scores=self.scores.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in memory from which a GPU copies without waiting."""
        inputs = tuple(tensor.pin_memory() for tensor in self.inputs)
        return replace(self, inputs=inputs, scores=self.scores.pin_memory())


@dataclass(frozen=True)
class _LabelledFiles(Dataset[Batch]):
    samples: Sequence[Sample]
    read: Read
    skip_bad_files: bool

    def __getitem__(self, draws: Sequence[Draw]) -> Batch:
        inputs, scores, indices, bad_files = [], [], [], {}
        for draw in draws:
            sample = self.samples[draw.index]
            try:
                # As in a worker, so that a file gives the same bits however many there are.
                with computing_threads(1):
                    inputs.append(self.read(sample.path, draw.generator()))
            except ValueError as error:  # what every reader of ours raises for a bad file
                if not self.skip_bad_files:
                    raise
                bad_files[draw.index] = str(error)
            else:
                scores.append(sample.score)
                indices.append(draw.index)
        side_by_side = tuple(default_collate(inputs)) if inputs else ()
        labels = torch.tensor(scores, dtype=torch.float32)
        return Batch(side_by_side, labels, tuple(indices), bad_files)


def batch_loader(
    samples: Sequence[Sample],
    read: Read,
    settings: Settings,
    batches: list[list[Draw]],
    device: torch.device,
) -> DataLoader[Batch]:
    """The batches of these draws, which may change between iterations; the workers stay."""
    workers = min(settings.workers, len(batches))
    with warnings.catch_warnings():
        # More than there are cores is a matter of taste, as reading waits for disks, too.
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        return DataLoader(
            _LabelledFiles(tuple(samples), read, settings.bad_files == "skip"),
            batch_size=None,  # a draw is one of a whole batch
            sampler=batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            # Of its own, since the loader draws a number each time it begins: where a run stopped
            # must not show in the model's random numbers.
            generator=torch.Generator(),
            multiprocessing_context="spawn" if workers else None,
        )


@contextmanager
def computing_threads(number: int) -> Iterator[None]:
    """The block, in which torch computes on so many threads, which decides last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
