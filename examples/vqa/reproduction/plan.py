"""What will run, what is there already, what cannot run, and what it will cost."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from vqa.reproduction.catalogue import Exhibit
from vqa.reproduction.runs import PlannedRun, Sweep
from vqa.reproduction.sources import describe_extraction, extractions, sizes
from vqa.store import Store

State = Literal["finished", "interrupted", "to do", "impossible"]


@dataclass(frozen=True)
class Assumption:
    """Nobody measured these: one data-centre GPU that never waits for the disk."""

    epochs: int
    train_seconds: float  # per training sample and pass
    test_seconds: float  # per tested sample
    size: float  # bytes: five copies of the weights in last.pt and best.pt, 4 bytes each


ASSUMED: Mapping[str, Assumption] = {
    "fast_vqa": Assumption(30, 0.03, 0.04, 28e6 * 20),
    "sama_vqa": Assumption(30, 0.03, 0.04, 28e6 * 20),
    "sama_iqa": Assumption(50, 0.006, 0.003, 28e6 * 20),
    "simple_vqa": Assumption(10, 0.05, 0.03, 25e6 * 20),
}


@dataclass(frozen=True)
class Item:
    run: PlannedRun
    state: State
    hours: float  # of the device
    size: float  # bytes on disk
    recorded: bool  # both from finished runs of the same kind rather than from an assumption
    why: str = ""  # what an impossible run lacks


# Every run of some tables and figures, in the order in which they can be done.
Plan = tuple[Item, ...]


def to_run(plan: Plan) -> tuple[PlannedRun, ...]:
    """The runs that are not finished and can be."""
    return tuple(item.run for item in plan if item.state in ("to do", "interrupted"))


def needed_runs(
    exhibits: Sequence[Exhibit], sweep: Sweep, only: Sequence[str] = ()
) -> tuple[PlannedRun, ...]:
    """Runs of these tables and figures, or `only` of rows and curves with some labels.

    Each is there once, after the one that it starts from.
    """
    runs: dict[PlannedRun, None] = {}
    for exhibit in exhibits:
        for cell in exhibit.cells:
            if cell.training is not None and (not only or cell.label in only):
                for run in sweep.runs(cell.training):
                    runs.update(dict.fromkeys(run.chain))
    return tuple(runs)


def check_labels(exhibits: Sequence[Exhibit], only: Sequence[str]) -> None:
    """Raise a ValueError if no row or curve that can be run has one of the labels."""
    cells = (cell for exhibit in exhibits for cell in exhibit.cells)
    labels = dict.fromkeys(cell.label for cell in cells if cell.training is not None)
    for label in only:
        if label not in labels:
            raise ValueError(
                f"only: expected some of {', '.join(map(repr, labels))}, got {label!r}"
            )


def shard(runs: Sequence[PlannedRun], number: int, of: int) -> tuple[PlannedRun, ...]:
    """The share of a machine, numbered from 1; runs that start from one another stay together."""
    firsts = dict.fromkeys(run.chain[0] for run in runs)
    places = {first: place for place, first in enumerate(firsts)}
    return tuple(run for run in runs if places[run.chain[0]] % of == number - 1)


def make_plan(
    runs: Sequence[PlannedRun],
    store: Store,
    missing: Callable[[PlannedRun], str | None] = lambda run: None,
) -> Plan:
    """Look up every run, each after the one that it starts from; `missing` says what it lacks."""
    recorded = _recorded_costs(store)
    items: dict[PlannedRun, Item] = {}
    for run in runs:
        lacks = missing(run)
        if run.start is not None and items[run.start].state == "impossible":
            lacks = lacks or items[run.start].why
        state: State = "interrupted" if store.has_begun(run) else "to do"
        if store.results(run) is not None:
            state, lacks = "finished", None
        elif lacks is not None:
            state = "impossible"
        items[run] = Item(run, state, *_estimate(run, recorded), lacks or "")
    return tuple(items.values())


# Seconds of a pass and bytes of every finished run, by script, preset and data set.
_Costs = Mapping[tuple[str, str, str], Sequence[tuple[float, float]]]


def _recorded_costs(store: Store) -> _Costs:
    recorded: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for note, results, size in store.finished():
        run = note["run"]
        kind = (run["script"], run["preset"], run["dataset"])
        recorded.setdefault(kind, []).append((results.device_seconds / note["passes"], size))
    return recorded


def _estimate(run: PlannedRun, recorded: _Costs) -> tuple[float, float, bool]:
    """Hours, size, and whether they are recorded. A second pass is taken to double the time."""
    if own := recorded.get((run.script, run.preset, run.dataset)):
        seconds, size = (statistics.median(values) for values in zip(*own, strict=True))
        return seconds * run.passes / 3600, size, True
    if run.preset == "tiny":  # assumed, as those below
        return 2 / 60, 1e6, False
    costs, samples = ASSUMED[run.script], sizes(run.dataset)
    epochs = int(run.value("--epochs") or costs.epochs)
    tested = epochs * samples["test"] + samples.total() - samples["train"] - samples["test"]
    tested += sum(sizes(name).total() for name in run.also_test)
    if "--no-train-score" not in run.flags:
        tested += samples["train"]
    trained = epochs * samples["train"] * run.passes
    seconds = trained * costs.train_seconds + tested * costs.test_seconds
    return seconds / 3600, costs.size, False


def describe_plan(
    plan: Plan, exhibits: Sequence[Exhibit], sweep: Sweep, only: Sequence[str] = ()
) -> str:
    """The plan to read: every table and figure with its runs, then every run."""
    items = {item.run: item for item in plan}
    lines = ["Runs that are finished, of those needed, and device hours for the others:"]
    for exhibit in exhibits:
        own = [items[run] for run in needed_runs((exhibit,), sweep, only) if run in items]
        left = [item for item in own if item.state != "finished"]
        done = len(own) - len(left)
        counts = f"{exhibit.name:<8} {done:>3} of {len(own):>3} {_hours(left):>7.1f} h"
        lines.append(f"  {counts}  {exhibit.title}")
    lines.append("Runs, each once, with the estimated device hours of those to do:")
    for item in plan:
        cost = "" if item.state == "finished" else f" {item.hours:8.2f} h"
        lines.append(f"  {item.state:<11}{cost:<11} {item.run.name}  {item.run.describe()}")
    extracted = map(describe_extraction, extractions(to_run(plan)))
    lines += [f"Before them, SimpleVQA's features: {cost}" for cost in extracted]
    reasons = Counter(item.why for item in plan if item.why)
    lines += [f"Impossible, {number} runs: {why}" for why, number in reasons.items()]
    return "\n".join([*lines, *_summary(plan, "GPU" if sweep.comparable else "CPU")])


def _summary(plan: Plan, device: str) -> Iterator[str]:
    possible = [item for item in plan if item.state in ("to do", "interrupted")]
    impossible = [item for item in plan if item.state == "impossible"]
    finished = len(plan) - len(possible) - len(impossible)
    yield f"{len(plan)} runs: {finished} finished, {len(possible)} to run."
    for what, items in (("To run", possible), ("Impossible ones would be", impossible)):
        if items:
            size = sum(item.size for item in items)
            assumed = sum(not item.recorded for item in items)
            basis = "assumed, not measured"
            if assumed == 0:
                basis = "from recorded times of runs of the same kind"
            elif assumed < len(items):
                basis += f" for {assumed} of {len(items)} runs, else recorded"
            yield (
                f"{what}: about {_hours(items):.3g} {device} hours and {size / 1e9:.3g} GB on"
                f" disk, {basis}."
            )


def _hours(items: Sequence[Item]) -> float:
    return sum(item.hours for item in items)
