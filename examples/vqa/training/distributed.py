"""One process or several (torchrun): which of them we are, and what they tell each other."""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")

DeviceName = str
"""`auto`, `cpu`, `cuda`, or `cuda:1` for one GPU of several."""


@dataclass(frozen=True)
class ProcessGroup:
    """This process among its peers; a run without torchrun is the first of one."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and shows the progress."""
        return self.rank == 0

    def barrier(self) -> None:
        if self.world_size > 1:
            distributed.barrier()

    def all_gather(self, mine: list[T]) -> list[T]:
        """Everybody's items, in the order of the processes."""
        if self.world_size == 1:
            return mine
        everybody: list[list[T] | None] = [None] * self.world_size
        distributed.all_gather_object(everybody, mine)
        return [item for items in everybody if items is not None for item in items]

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the values that the first has."""
        if self.world_size > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)

    def all_reduce_mean(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the mean of all processes' tensors."""
        if self.world_size > 1:
            for tensor in tensors:
                distributed.all_reduce(tensor.div_(self.world_size))

    def gather_batch(self, predicted: Tensor, target: Tensor, share: int) -> tuple[Tensor, Tensor]:
        """Predicted and opinion scores [B] of all processes; only one's own carry a gradient.

        A loss that compares all of them, times the number of processes, then gives after
        DistributedDataParallel's averaging the gradient that one process would have found. A
        process has at most `share` samples.
        """
        if self.world_size == 1:
            return predicted, target
        mine = predicted.new_full((2, share), torch.nan)  # marks places without a sample
        mine[:, : len(target)] = torch.stack([predicted.detach(), target])
        everybody = [torch.empty_like(mine) for _ in range(self.world_size)]
        distributed.all_gather(everybody, mine)
        parts = [theirs[:, ~theirs[1].isnan()] for theirs in everybody]
        scores = [part[0] for part in parts]
        scores[self.rank] = predicted
        return torch.cat(scores), torch.cat([part[1] for part in parts])


def own_device(device: DeviceName) -> torch.device:
    """The device of this process; `"auto"` is its GPU where there is one."""
    named = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", device)
    if named is None:
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:NUMBER, got {device!r}")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number = int(named[1] or os.environ.get("LOCAL_RANK", "0"))
    if device.startswith("cuda") and number >= gpus:
        raise ValueError(f"device: expected one of the {gpus} GPUs of this machine, got {device!r}")
    if named[1] and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(f"device: expected a GPU for each process, got {device!r} for all of them")
    if device == "cpu" or not gpus:
        return torch.device("cpu")
    return torch.device("cuda", number)


@contextmanager
def process_group(device: DeviceName = "auto") -> Iterator[ProcessGroup]:
    """This process among its peers, for the length of the block, as torchrun announces them."""
    own = own_device(device)
    on_gpu = own.type == "cuda"
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1:
        yield ProcessGroup(own)
        return
    if on_gpu:
        torch.cuda.set_device(own)
    distributed.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield ProcessGroup(own, distributed.get_rank(), processes)
    finally:
        distributed.destroy_process_group()
