"""The results of a ground, one line for each method, and the planned contrasts between methods."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.generalization_grounds.comparison import Comparison, compare
from benchmarks.generalization_grounds.ground import Outcome
from benchmarks.generalization_grounds.items import interval, resampled_srcc
from benchmarks.generalization_grounds.methods import PLAIN
from benchmarks.generalization_grounds.selection import Choice
from vqa.metrics import summarise


@dataclass(frozen=True)
class ReportRow:
    """One method on one ground; costs in units of plain training's."""

    ground: str
    method: str
    title: str
    setting: str
    """The value that was decided on validation data."""
    score: float
    """Mean over seeds on the test data."""
    spread: float
    train_score: float
    passes: float
    """Forward and backward passes."""
    cpu_time: float
    """Processor time of the whole training: median over seeds of the ratio within a seed."""
    difference: float
    """Score minus plain's, mean over seeds; the interval's ends are `low` and `high`."""
    low: float
    high: float
    p_value: float | None
    p_holm: float
    wins: int
    n: int


def compared_with_plain(
    ground: str, choices: Mapping[str, Choice], outcomes: Mapping[str, Sequence[Outcome]]
) -> list[ReportRow]:
    """A line for each method, plain first, in the order of `outcomes`.

    Args:
        ground: its name.
        choices: per method what was decided.
        outcomes: per method one outcome for each seed, the seeds in the same order.
    """
    others = [method for method in outcomes if method != PLAIN]
    tests = compare(_scores(outcomes), [(method, PLAIN) for method in others])
    rows = [_row(ground, PLAIN, choices, outcomes, None)]
    for method, test in zip(others, tests, strict=True):
        rows.append(_row(ground, method, choices, outcomes, test))
    return rows


def further_scores(
    ground: str, choices: Mapping[str, Choice], outcomes: Mapping[str, Sequence[Outcome]]
) -> dict[str, list[ReportRow]]:
    """The rows for each further score of the models, corrected for the methods of each alone."""
    names = outcomes[PLAIN][0].also
    return {
        what: compared_with_plain(
            f"{ground}, {what}",
            choices,
            {
                method: [replace(outcome, score=outcome.also[what]) for outcome in own]
                for method, own in outcomes.items()
            },
        )
        for what in names
    }


def over_items(
    outcomes: Mapping[str, Sequence[Outcome]], opinion: Mapping[str, Sequence[float]]
) -> dict[str, dict[str, tuple[float, float]]]:
    """By score and method, the interval of the difference to plain if other items were scored.

    For scores whose items are the same for every seed, so that intervals over seeds ignore them.
    """
    found = {}
    for what, scores in opinion.items():
        samples = {
            method: resampled_srcc([outcome.predicted[what] for outcome in own], scores)
            for method, own in outcomes.items()
        }
        found[what] = {
            method: interval(own - samples[PLAIN])
            for method, own in samples.items()
            if method != PLAIN
        }
    return found


def contrasts(outcomes: Mapping[str, Sequence[Outcome]], ordinary: str) -> list[Comparison]:
    """Questions asked beforehand, of which plain is no side; corrected as a family of their own.

    Does weight perturbation beat the best ordinary regulariser, or add to it? Does the single pass
    reach what two passes do, and a random direction of its price? Does AWP beat SAM, or spending
    its price on more steps?
    """
    pairs = [
        ("awp", ordinary),
        ("ordinary+awp", ordinary),
        ("awp-update", ordinary),
        ("ordinary+update", ordinary),
        ("awp-update", "awp"),
        ("awp-update", "rwp"),
        ("awp-late", "awp"),
        ("awp", "rwp"),
        ("awp", "sam"),
        ("awp", "double"),
    ]
    return compare(_scores(outcomes), pairs)


def _scores(outcomes: Mapping[str, Sequence[Outcome]]) -> dict[str, list[float]]:
    return {method: [outcome.score for outcome in own] for method, own in outcomes.items()}


def _row(
    ground: str,
    method: str,
    choices: Mapping[str, Choice],
    outcomes: Mapping[str, Sequence[Outcome]],
    test: Comparison | None,
) -> ReportRow:
    own, plain = outcomes[method], outcomes[PLAIN]
    score = summarise([outcome.score for outcome in own])
    times = [a.cpu_seconds / b.cpu_seconds for a, b in zip(own, plain, strict=True)]
    return ReportRow(
        ground=ground,
        method=method,
        title=choices[method].title,
        setting=choices[method].setting,
        score=score.mean,
        spread=score.spread,
        train_score=statistics.mean(outcome.train_score for outcome in own),
        passes=sum(o.passes for o in own) / sum(o.passes for o in plain),
        cpu_time=statistics.median(times),
        difference=test.difference if test else 0.0,
        low=test.low if test else 0.0,
        high=test.high if test else 0.0,
        p_value=test.p_value if test else None,
        p_holm=test.p_holm if test else 1.0,
        wins=test.wins if test else 0,
        n=len(own),
    )
