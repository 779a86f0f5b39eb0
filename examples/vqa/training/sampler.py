"""Which samples a training batch holds, and where each gets its random numbers from.

Both are functions of seed, epoch and sample alone. So a run that goes on in the middle of an epoch
sees what it would have seen, whatever the number of loader workers, and several processes share
the batches of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Sampler


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
