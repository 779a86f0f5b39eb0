"""Running what a plan says: one process (or one torchrun) per run, several beside one another."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from queue import SimpleQueue

from vqa.processes import progress_bar
from vqa.reproduction.runs import PlannedRun
from vqa.reproduction.sources import Sources, extractions
from vqa.store import Store

EXAMPLES = Path(__file__).resolve().parents[2]

# Runs a command with its output added to a file and some environment variables set.
Launcher = Callable[[Sequence[str], Path, Mapping[str, str]], int]


@dataclass(frozen=True)
class Machine:
    """How runs use this machine; none of it changes what they learn."""

    jobs: int = 1  # runs side by side
    torchrun: int = 0  # processes of a run under torchrun; 0 without it
    gpus: tuple[str, ...] = ()  # divided among the jobs; every job sees all of them if empty
    flags: tuple[str, ...] = ()  # settings such as --workers for every run

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

    def environments(self) -> SimpleQueue[Mapping[str, str]]:
        """One for each job, to be taken for a run and put back after it."""
        queue: SimpleQueue[Mapping[str, str]] = SimpleQueue()
        each = len(self.gpus) // self.jobs
        for job in range(self.jobs):
            own = ",".join(self.gpus[job * each : (job + 1) * each])
            queue.put({"CUDA_VISIBLE_DEVICES": own} if own else {})
        return queue


@dataclass(frozen=True)
class Failure:
    """A run that did not end well."""

    run: PlannedRun
    why: str
    tail: str = ""  # the last lines of its log


def command(run: PlannedRun, sources: Sources, machine: Machine, store: Store) -> list[str]:
    """The command line of a run, beginning with this Python."""
    options: list[object] = [*sources.dataset_options(run.dataset), *run.flags]
    if run.also_test:
        options.append("--also-test")
    for name in run.also_test:
        file = f",{sources.annotations[name]}" if name in sources.annotations else ""
        options.append(f"{name}={sources.root(name)}{file}")
    if run.start is not None:
        options += ["--finetune-from", store.weights(run.start)]
    elif run.script in sources.weights and run.preset != "tiny":
        options += ["--pretrained", sources.weights[run.script]]
    if run.script == "simple_vqa":
        options += ["--features", sources.features_folder(run.dataset)]
    options += ["--splits", run.split, "--seed", run.seed, *machine.flags]
    options += ["--output", store.folder(run)]
    python = [sys.executable]
    if machine.torchrun:
        processes = ("--standalone", "--nproc-per-node", str(machine.torchrun))
        python += ["-m", "torch.distributed.run", *processes]
    return [*python, str(EXAMPLES / f"{run.script}.py"), run.preset, *map(str, options)]


def note_of(run: PlannedRun, command: Sequence[str]) -> dict[str, object]:
    """What a run's folder is for, as plain values."""
    return {"run": asdict(run), "passes": run.passes, "command": list(command)}


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


def execute(
    runs: Sequence[PlannedRun],
    sources: Sources,
    machine: Machine,
    store: Store,
    launcher: Launcher = launch,
) -> tuple[Failure, ...]:
    """Do runs, each after the one that it starts from; what fails does not stop the others."""
    failures = _extract(runs, sources, store, launcher)
    lacking = {failure.run for failure in failures}
    ready = [run for run in runs if run not in lacking]
    environments = machine.environments()

    def do(run: PlannedRun) -> list[Failure]:
        if run.start is not None and store.results(run.start) is None:
            return [Failure(run, f"{run.start.name}, from which it starts, is not finished")]
        own = command(run, sources, machine, store)
        store.note(run, note_of(run, own))
        environment = environments.get()
        try:
            status = launcher(own, store.log(run), environment)
        finally:
            environments.put(environment)
        why = f"exit status {status}" if status != 0 else ""
        try:
            if status == 0 and store.results(run) is None:
                why = "it wrote no results.json"
        except ValueError as error:
            why = str(error)
        return [Failure(run, why, tail(store.log(run)))] if why else []

    others = set(ready)
    order = TopologicalSorter({run: others.intersection(run.chain[:-1]) for run in ready})
    order.prepare()
    pool = ThreadPoolExecutor(machine.jobs)
    with progress_bar("runs", len(ready), "run") as bar:
        try:
            while order.is_active():
                side_by_side = order.get_ready()
                for future in as_completed([pool.submit(do, run) for run in side_by_side]):
                    failures += future.result()
                    bar.update()
                order.done(*side_by_side)
        finally:
            pool.shutdown(cancel_futures=True)
    return tuple(failures)


def _extract(
    runs: Sequence[PlannedRun], sources: Sources, store: Store, launcher: Launcher
) -> list[Failure]:
    """Extract features; the runs that will not have them."""
    failures: dict[PlannedRun, Failure] = {}
    script = str(EXAMPLES / "simple_vqa_features.py")
    for dataset in extractions(runs):
        log = store.folder_of_logs() / f"features-{dataset}.txt"
        if launcher([sys.executable, script, *sources.extraction_options(dataset)], log, {}) != 0:
            why = f"no features of {dataset}"
            lacking = [run for run in runs if dataset in extractions([run])]
            failures |= {run: Failure(run, why, tail(log)) for run in lacking}
    return [failures[run] for run in runs if run in failures]


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log; of a progress bar, its last state."""
    if not log.is_file():
        return ""
    with log.open(encoding="utf-8", errors="replace", newline="\n") as file:
        every = [line.rstrip().rpartition("\r")[2].lstrip() for line in file]
    return "\n".join(every[-lines:])
