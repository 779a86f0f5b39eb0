"""What will run, what is there already, what cannot run, and what it will cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from vqa.reproduction.catalogue import Exhibit
from vqa.reproduction.cost import CostBook, Estimate, total
from vqa.reproduction.features import extractions
from vqa.reproduction.sweep import Sweep, needed_runs
from vqa.reproduction.trainings import PlannedRun
from vqa.store import Store

State = Literal["finished", "interrupted", "to do", "impossible"]


@dataclass(frozen=True)
class Item:
    """One run of a plan."""

    run: PlannedRun
    state: State
    estimate: Estimate
    why: str = ""
    """What an impossible run lacks."""


@dataclass(frozen=True)
class Plan:
    """Every run of some tables and figures, in the order in which they can be done."""

    items: tuple[Item, ...]

    @property
    def to_run(self) -> tuple[PlannedRun, ...]:
        """The runs that are not finished and can be."""
        return tuple(item.run for item in self.items if item.state in ("to do", "interrupted"))


def make_plan(
    runs: Sequence[PlannedRun],
    store: Store,
    missing: Callable[[PlannedRun], str | None] = lambda run: None,
) -> Plan:
    """Look every run up.

    Args:
        runs: the runs, each after the one that it starts from.
        store: where finished ones are.
        missing: what a run lacks to be run.
    """
    costs = CostBook(store)
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
        items[run] = Item(run, state, costs.estimate(run), lacks or "")
    return Plan(tuple(items.values()))


def describe_plan(
    plan: Plan, exhibits: Sequence[Exhibit], sweep: Sweep, only: Sequence[str] = ()
) -> str:
    """The plan to read: every table and figure with its runs, then every run."""
    items = {item.run: item for item in plan.items}
    lines = ["Runs that are finished, of those needed, and device hours for the others:"]
    for exhibit in exhibits:
        own = [items[run] for run in needed_runs((exhibit,), sweep, only) if run in items]
        left = [item for item in own if item.state != "finished"]
        hours = total(item.estimate for item in left).hours
        lines.append(
            f"  {exhibit.name:<8} {len(own) - len(left):>3} of {len(own):>3} {hours:>7.1f} h "
            f" {exhibit.title}"
        )
    lines.append("Runs, each once, with the estimated device hours of those to do:")
    for item in plan.items:
        cost = "" if item.state == "finished" else f" {item.estimate.hours:8.2f} h"
        lines.append(f"  {item.state:<11}{cost:<11} {item.run.name}  {item.run.describe()}")
    lines += [
        f"Before them, SimpleVQA's features: {own.describe()}" for own in extractions(plan.to_run)
    ]
    return "\n".join([*lines, *_why_impossible(plan), _summary(plan, sweep)])


def _why_impossible(plan: Plan) -> list[str]:
    reasons = dict.fromkeys(item.why for item in plan.items if item.why)
    return [
        f"Impossible, {sum(item.why == why for item in plan.items)} runs: {why}" for why in reasons
    ]


def _summary(plan: Plan, sweep: Sweep) -> str:
    device = "GPU" if sweep.data.comparable else "CPU"
    counts = Counter(item.state for item in plan.items)
    lines = [f"{len(plan.items)} runs: {counts['finished']} finished, {len(plan.to_run)} to run."]
    for what, items in (
        ("To run", [item for item in plan.items if item.run in plan.to_run]),
        ("Impossible ones would be", [item for item in plan.items if item.state == "impossible"]),
    ):
        if items:
            whole = total(item.estimate for item in items)
            lines.append(
                f"{what}: about {whole.hours:.3g} {device} hours and {whole.size / 1e9:.3g} GB on"
                f" disk, {_basis(items)}."
            )
    return "\n".join(lines)


def _basis(items: Sequence[Item]) -> str:
    assumed = sum(not item.estimate.recorded for item in items)
    if assumed == 0:
        return "from recorded times of runs of the same kind"
    others = "" if assumed == len(items) else f" for {assumed} of {len(items)} runs, else recorded"
    return f"assumed, not measured{others}"
