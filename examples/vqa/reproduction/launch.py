"""Running what a plan says: one process (or one torchrun) per run, several beside one another."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue

from vqa.progress import progress_bar
from vqa.reproduction.features import extractions, features_folder
from vqa.reproduction.sources import Sources
from vqa.reproduction.trainings import PlannedRun
from vqa.store import Store

EXAMPLES = Path(__file__).resolve().parents[2]
_TAIL = 15  # lines

# Runs a command with its output added to a file and some environment variables set.
Launcher = Callable[[Sequence[str], Path, Mapping[str, str]], int]


@dataclass(frozen=True)
class Machine:
    """How runs use this machine; none of it changes what they learn."""

    jobs: int = 1
    """Runs side by side."""
    torchrun: int = 0
    """Processes of a run under torchrun; 0 without it."""
    gpus: tuple[str, ...] = ()
    """Devices that the jobs divide among themselves; every job sees all of them if empty."""
    flags: tuple[str, ...] = ()
    """Settings such as --workers for every run."""

    def __post_init__(self) -> None:
        if self.jobs < 1 or self.torchrun < 0:
            raise ValueError(
                f"jobs, torchrun: expected from 1 and from 0, got {self.jobs} and {self.torchrun}"
            )
        if self.gpus and len(self.gpus) < self.jobs * max(1, self.torchrun):
            raise ValueError(
                f"gpus: expected {max(1, self.torchrun)} for each of {self.jobs} jobs,"
                f" got {', '.join(self.gpus)}"
            )

    def shares(self) -> list[dict[str, str]]:
        """Environment of each job."""
        if not self.gpus:
            return [{} for _ in range(self.jobs)]
        each = len(self.gpus) // self.jobs
        return [
            {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus[job * each : (job + 1) * each])}
            for job in range(self.jobs)
        ]


@dataclass(frozen=True)
class Failure:
    """A run that did not end well."""

    run: PlannedRun
    why: str
    tail: str = ""
    """The last lines of its log."""


def command(run: PlannedRun, sources: Sources, machine: Machine, store: Store) -> list[str]:
    """The command line of a run, beginning with this Python."""
    options = [
        *("--dataset", run.dataset, "--data-root", str(sources.root(run.dataset))),
        *_annotations(run, sources),
        *run.flags,
        *_also_test(run, sources),
        *_beginning(run, sources, store),
        *_features(run, sources),
        *("--splits", str(run.split), "--seed", str(run.seed)),
        *machine.flags,
        *("--output", str(store.folder(run))),
    ]
    return [*_python(machine), str(EXAMPLES / f"{run.script}.py"), run.preset, *options]


def note_of(run: PlannedRun, command: Sequence[str]) -> dict[str, object]:
    """What a run's folder is for, as plain values."""
    return {"run": asdict(run), "passes": run.passes, "command": list(command)}


def execute(
    runs: Sequence[PlannedRun],
    sources: Sources,
    machine: Machine,
    store: Store,
    launcher: Launcher | None = None,
) -> tuple[Failure, ...]:
    """Do runs, each after the one that it starts from; what fails does not stop the others.

    Args:
        runs: those to do.
        sources: files that they read.
        machine: how to share it among them.
        store: where they write.
        launcher: runs a command; as a process by default.
    """
    launcher = launcher or launch
    lacking = _extract(runs, sources, store, launcher)
    failures = [Failure(run, *lacking[run]) for run in runs if run in lacking]
    ready = [run for run in runs if run not in lacking]
    with progress_bar("runs", len(ready), "run") as bar:
        for wave in _waves(ready):
            for failure in _side_by_side(wave, sources, machine, store, launcher):
                failures += [] if failure is None else [failure]
                bar.update()
    return tuple(failures)


def launch(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
    """Run a command to its end, its output added to the log; its exit status."""
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {shlex.join(command)}\n")
        file.flush()
        return subprocess.run(  # noqa: S603  # a script of this repository
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            check=False,
        ).returncode


def tail(log: Path, lines: int = _TAIL) -> str:
    """The last lines of a log; of a progress bar, its last state."""
    if not log.is_file():
        return ""
    with log.open(encoding="utf-8", errors="replace", newline="\n") as file:
        every = [_last_state(line) for line in file]
    return "\n".join(every[-lines:])


def _last_state(line: str) -> str:
    states = [state.strip() for state in line.split("\r")]
    return next(filter(None, reversed(states)), "")


def _extract(
    runs: Sequence[PlannedRun], sources: Sources, store: Store, launcher: Launcher
) -> dict[PlannedRun, tuple[str, str]]:
    """Extract features; runs that will not have them, with the reason and the end of a log."""
    lacking: dict[PlannedRun, tuple[str, str]] = {}
    for extraction in extractions(runs):
        log = store.folder_of_logs() / f"features-{extraction.dataset}.txt"
        own = extraction.command(sources, EXAMPLES / "simple_vqa_features.py")
        if launcher(own, log, {}) != 0:
            why = (f"no features of {extraction.dataset}", tail(log))
            lacking |= {run: why for run in runs if extraction in extractions([run])}
    return lacking


def _python(machine: Machine) -> list[str]:
    if machine.torchrun == 0:
        return [sys.executable]
    processes = ("--standalone", "--nproc-per-node", str(machine.torchrun))
    return [sys.executable, "-m", "torch.distributed.run", *processes]


def _annotations(run: PlannedRun, sources: Sources) -> Iterator[str]:
    if run.dataset in sources.annotations:
        yield from ("--annotations", str(sources.annotations[run.dataset]))


def _also_test(run: PlannedRun, sources: Sources) -> Iterator[str]:
    if run.also_test:
        yield "--also-test"
    for name in run.also_test:
        file = f",{sources.annotations[name]}" if name in sources.annotations else ""
        yield f"{name}={sources.root(name)}{file}"


def _beginning(run: PlannedRun, sources: Sources, store: Store) -> Iterator[str]:
    if run.start is not None:
        yield from ("--finetune-from", str(store.weights(run.start)))
    elif run.script in sources.weights and run.preset != "tiny":
        yield from ("--pretrained", str(sources.weights[run.script]))


def _features(run: PlannedRun, sources: Sources) -> Iterator[str]:
    if run.script == "simple_vqa":
        yield from ("--features", str(features_folder(sources, run.dataset)))


def _waves(runs: Sequence[PlannedRun]) -> list[list[PlannedRun]]:
    """Runs that can go side by side, after those that they start from."""
    waves: list[list[PlannedRun]] = []
    left = list(runs)
    while left:
        ready = [run for run in left if run.start not in left]
        waves.append(ready)
        left = [run for run in left if run not in ready]
    return waves


def _side_by_side(
    runs: Sequence[PlannedRun], sources: Sources, machine: Machine, store: Store, launcher: Launcher
) -> Iterable[Failure | None]:
    free: SimpleQueue[dict[str, str]] = SimpleQueue()
    for share in machine.shares():
        free.put(share)

    def do(run: PlannedRun) -> Failure | None:
        with _borrowed(free) as environment:
            return _do(run, command(run, sources, machine, store), store, launcher, environment)

    pool = ThreadPoolExecutor(machine.jobs)
    try:
        for future in as_completed([pool.submit(do, run) for run in runs]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _borrowed(free: SimpleQueue[dict[str, str]]) -> Iterator[dict[str, str]]:
    share = free.get()
    try:
        yield share
    finally:
        free.put(share)


def _do(
    run: PlannedRun,
    command: list[str],
    store: Store,
    launcher: Launcher,
    environment: Mapping[str, str],
) -> Failure | None:
    if run.start is not None and store.results(run.start) is None:
        return Failure(run, f"{run.start.name}, from which it starts, is not finished")
    store.note(run, note_of(run, command))
    status = launcher(command, store.log(run), environment)
    if status != 0:
        return Failure(run, f"exit status {status}", tail(store.log(run)))
    try:
        missing = store.results(run) is None
    except ValueError as error:
        return Failure(run, str(error), tail(store.log(run)))
    return Failure(run, "it wrote no results.json", tail(store.log(run))) if missing else None
