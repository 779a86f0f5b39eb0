"""Processes that stay: a test hands every rank a function and gets the results of all back.

Starting processes that import torch takes many seconds, so a few serve all tests. What runs there
must be importable: functions of test modules, with arguments and results that pickle.
"""

import functools
import multiprocessing
import os
import pickle
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

PATIENCE = timedelta(minutes=10)  # ends what hangs, however busy and slow the machine
PRELOADED = ["torch.distributed.fsdp", "torch.distributed.checkpoint.state_dict"]


@functools.cache
def mesh_of(shape: tuple[int, ...], names: tuple[str, ...] | None = None) -> DeviceMesh:
    """On a rank, all ranks as a mesh; made once, since gloo watches each of its groups for ever."""
    return init_device_mesh("cpu", shape, mesh_dim_names=names)


class Ranks:
    """``size`` processes of one gloo group on this machine."""

    def __init__(self, size: int, folder: Path) -> None:
        self.size = size
        self._folder = folder
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Return what ``function(rank, *args)`` returns on every rank."""
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send_bytes(pickle.dumps((function, args)))
        answers = [self._answer(pipe) for pipe in self._pipes]
        failures = [answer for answer in answers if isinstance(answer, Failure)]
        if failures:
            self.stop()  # the others may wait for this one forever
            raise AssertionError("\n".join(failure.trace for failure in failures))
        return answers

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes = [], []

    def _start(self) -> None:
        windows = sys.platform == "win32"
        context = multiprocessing.get_context("spawn" if windows else "forkserver")
        if not windows:
            context.set_forkserver_preload(PRELOADED)
        rendezvous = self._folder / f"rendezvous{len(list(self._folder.iterdir()))}"
        for rank in range(self.size):
            here, there = context.Pipe()
            process = context.Process(
                target=_serve, args=(there, rank, self.size, str(rendezvous)), daemon=True
            )
            process.start()
            there.close()
            self._processes.append(process)
            self._pipes.append(here)

    def _answer(self, pipe: Connection) -> Any:
        try:
            if pipe.poll(2 * PATIENCE.total_seconds()):
                return pickle.loads(pipe.recv_bytes())
        except EOFError:
            return Failure("a rank died")
        return Failure("a rank did not answer")


class Failure:
    def __init__(self, trace: str) -> None:
        self.trace = trace


def _serve(pipe: Connection, rank: int, size: int, rendezvous: str) -> None:
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size, timeout=PATIENCE
    )
    while True:
        function, args = pickle.loads(pipe.recv_bytes())
        torch.manual_seed(0)
        try:
            answer = function(rank, *args)
        except BaseException:
            answer = Failure(f"rank {rank}: {traceback.format_exc()}")
        pipe.send_bytes(pickle.dumps(answer))
