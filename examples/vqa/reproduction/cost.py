"""What runs will cost: as recorded of runs of the same kind, otherwise as assumed."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vqa.datasets import SPECS
from vqa.reproduction.trainings import PlannedRun
from vqa.store import Store


@dataclass(frozen=True)
class Estimate:
    """Device hours and bytes on disk of one run."""

    hours: float
    size: float
    recorded: bool
    """From finished runs rather than from an assumption."""


@dataclass(frozen=True)
class Assumption:
    """Nobody measured these: one data-centre GPU that never waits for the disk."""

    epochs: int
    train_seconds: float
    """Per training sample and pass."""
    test_seconds: float
    """Per tested sample."""
    size: float
    """Bytes: five copies of the weights in last.pt and best.pt, 4 bytes each."""


ASSUMED: Mapping[str, Assumption] = {
    "fast_vqa": Assumption(30, 0.03, 0.04, 28e6 * 20),
    "sama_vqa": Assumption(30, 0.03, 0.04, 28e6 * 20),
    "sama_iqa": Assumption(50, 0.006, 0.003, 28e6 * 20),
    "simple_vqa": Assumption(10, 0.05, 0.03, 25e6 * 20),
}
ASSUMED_TINY = Estimate(hours=2 / 60, size=1e6, recorded=False)

# Script, preset and data set.
_Kind = tuple[str, str, str]


class CostBook:
    """Costs of the runs that are finished.

    Args:
        store: where they are.
    """

    def __init__(self, store: Store) -> None:
        self._recorded: dict[_Kind, list[tuple[float, float]]] = {}
        for note, results, size in store.finished():
            run = note["run"]
            kind = (run["script"], run["preset"], run["dataset"])
            per_pass = results.device_seconds / note["passes"]
            self._recorded.setdefault(kind, []).append((per_pass, size))

    def estimate(self, run: PlannedRun) -> Estimate:
        """What a run will cost. A second pass per step is taken to double its time."""
        recorded = self._recorded.get((run.script, run.preset, run.dataset))
        if recorded:
            seconds, size = (statistics.median(values) for values in zip(*recorded, strict=True))
            return Estimate(seconds * run.passes / 3600, size, recorded=True)
        return ASSUMED_TINY if run.preset == "tiny" else _assumed(run)


def _assumed(run: PlannedRun) -> Estimate:
    costs, own = ASSUMED[run.script], sizes(run.dataset)
    epochs = int(run.value("--epochs") or costs.epochs)
    tested = epochs * own["test"] + own.total() - own["train"] - own["test"]
    tested += sum(sizes(name).total() for name in run.also_test)
    if "--no-train-score" not in run.flags:
        tested += own["train"]
    seconds = epochs * own["train"] * run.passes * costs.train_seconds + tested * costs.test_seconds
    return Estimate(seconds / 3600, costs.size, recorded=False)


def sizes(dataset: str) -> Counter[str]:
    """Samples of a data set by part, as published; a random split has 80 % to train on."""
    counts: Counter[str] = Counter()
    for reference in reversed(SPECS[dataset].references):  # the first of a kind counts
        counts[reference.part or "all"] = reference.count
    every = counts.pop("all", 0)
    if not counts["train"]:
        counts.update(train=round(0.8 * every), test=round(0.2 * every))
    return counts


def total(estimates: Iterable[Estimate]) -> Estimate:
    """All of them together; recorded only if every one is."""
    every = tuple(estimates)
    return Estimate(
        sum(each.hours for each in every),
        sum(each.size for each in every),
        all(each.recorded for each in every),
    )
