"""Does weight perturbation generalise better, and at what price? Many methods on some grounds.

* `biq2021`: real opinion scores of photographs, from features that `benchmarks/data` carries;
* `digits`: real handwritten digits, a fifth of the labels wrong;
* `mini-ugc`: small real videos with synthetic scores, built on first use;
* `konvid-1k`, `live-vqc`, `youtube-ugc`: real opinion scores of videos, from features in a clone of
  the repository vztu/VIDEVAL: trained on the one, tested on it and on both others, before and
  after fine-tuning;
* `biq2021-sgd`, `digits-sgd`: the first two under SGD with momentum instead of AdamW.

Whatever a method leaves open (gamma, dropout rate, ...) is decided on validation data of tuning
seeds, which nothing else uses. Then every method is trained from fresh seeds and scored on the test
data; differences to plain training are taken seed by seed. Finished runs are kept: an interrupted
benchmark goes on where it stopped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
import tyro

sys.path.extend(str(Path(__file__).resolve().parents[1] / folder) for folder in (".", "examples"))

from benchmarks.generalization_grounds.ground import Ground, Outcome
from benchmarks.generalization_grounds.methods import Recipe
from benchmarks.generalization_grounds.report import (
    markdown_table,
    sentences,
    write_csv,
    write_figure,
    write_transfer_figure,
)
from benchmarks.generalization_grounds.rows import (
    ReportRow,
    compared_with_plain,
    contrasts,
    further_scores,
    over_items,
)
from benchmarks.generalization_grounds.runs import GroundName, Job, Runner, build_ground
from benchmarks.generalization_grounds.selection import Choice, best_ordinary, choose_all
from vqa.io.files import write_json
from vqa.provenance import provenance
from vqa.synthetic.mini_ugc import DEFAULT_FOLDER

_REPOSITORY = Path(__file__).resolve().parents[1]
_PACKAGES = ("scikit-learn", "scikit-image", "pytorch_optimizer")
_FIRST_TUNING_SEED = 1000


@dataclass(frozen=True)
class Generalization:
    """Settings of the benchmark."""

    grounds: tuple[GroundName, ...] = ("biq2021", "digits", "mini-ugc")
    seeds: int | None = None
    """How many seeds (0, 1, ...) are reported, at least two; by default what the ground says."""
    tuning_seeds: int | None = None
    """How many seeds (1000, 1001, ...) decide what is open; by default as the ground says."""
    chosen: Path | None = None
    """Take what was decided from this earlier result instead of tuning."""
    processes: int = 1
    """Runs side by side, one core each; scores do not depend on it."""
    output: Path = Path(__file__).parent / "results"
    """Where generalization.json, .csv and .png go; grounds that do not run keep their results."""
    runs: Path = _REPOSITORY / "runs" / "generalization"
    """Where finished runs are kept."""
    data_dir: Path = DEFAULT_FOLDER
    """Where mini-UGC is, or is built."""
    videval: Path | None = None
    """Folder of a clone of vztu/VIDEVAL, which the grounds of videos need."""

    def __post_init__(self) -> None:
        for name, number, least in (
            ("seeds", self.seeds, 2),
            ("tuning_seeds", self.tuning_seeds, 1),
        ):
            if number is not None and number < least:
                raise ValueError(f"{name}: expected at least {least}, got {number}")


def main(
    benchmark: Generalization,
    build: Callable[[GroundName, Path, Path | None], Ground] = build_ground,
) -> None:
    """Tune, train, compare, print and write.

    Args:
        benchmark: the settings.
        build: a ground from its name and the folders of mini-UGC and VIDEVAL.
    """
    path = benchmark.output / "generalization.json"
    document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name in benchmark.grounds:
        ground = partial(build, name, benchmark.data_dir, benchmark.videval)
        document[name] = measure(
            Runner(name, ground, benchmark.runs, benchmark.processes), benchmark
        )
        write_json(path, document)
    rows = {name: [ReportRow(**row) for row in own["rows"]] for name, own in document.items()}
    also = {
        name: {what: [ReportRow(**row) for row in further] for what, further in own["also"].items()}
        for name, own in document.items()
        if own.get("also")
    }
    every = [*rows.values(), *(further for own in also.values() for further in own.values())]
    write_csv(path.with_suffix(".csv"), [row for own in every for row in own])
    write_figure(path.with_suffix(".png"), rows)
    if also:
        write_transfer_figure(path.with_name("transfer.png"), rows, also)
    print(f"\nWritten: {path} and, beside it, .csv and .png")


def measure(runner: Runner, benchmark: Generalization) -> dict[str, object]:
    """All that is said about one ground, printed and as a document."""
    ground, name = runner.build(), runner.name
    tuning = range(
        _FIRST_TUNING_SEED, _FIRST_TUNING_SEED + (benchmark.tuning_seeds or ground.tuning_seeds)
    )
    if benchmark.chosen is None:
        choices = choose_all(runner, tuning)
    else:
        choices = read_choices(benchmark.chosen, name)
    outcomes = run_all(runner, choices, range(benchmark.seeds or ground.seeds))
    rows, ordinary = compared_with_plain(name, choices, outcomes), best_ordinary(choices)
    also = further_scores(name, choices, outcomes)
    tests = contrasts(outcomes, ordinary)
    titles = {method: choice.title for method, choice in choices.items()}
    print(f"\n{name}\n\n{markdown_table(rows, ground.metric)}\n")
    print("\n".join(f"* {sentence}" for sentence in sentences(tests, titles)))
    for what, further in also.items():
        print(f"\n{name}, {what}\n\n{markdown_table(further, ground.metric)}\n")
    return {
        "environment": _environment(),
        "settings": ground.describe(),
        "grids": dict(ground.grids),
        "metric": ground.metric,
        "tuning_seeds": list(tuning),
        "chosen_from": None if benchmark.chosen is None else benchmark.chosen.name,
        "best_ordinary": ordinary,
        "rows": [asdict(row) for row in rows],
        "also": {what: [asdict(row) for row in further] for what, further in also.items()},
        "over_items": over_items(outcomes, ground.opinion),
        "contrasts": [asdict(test) for test in tests],
        "choices": {method: asdict(choice) for method, choice in choices.items()},
        "runs": {
            # Predictions would be the larger part of the file; they are with the finished runs.
            method: [asdict(replace(o, predicted={})) for o in own]
            for method, own in outcomes.items()
        },
    }


def run_all(
    runner: Runner, choices: Mapping[str, Choice], seeds: range
) -> dict[str, list[Outcome]]:
    """Every method on the test data, per method one outcome for each seed."""
    jobs = [Job(choice.recipe, seed, "test") for seed in seeds for choice in choices.values()]
    outcomes = runner.outcomes(jobs, "test")
    return {
        method: [outcomes[Job(choice.recipe, seed, "test")] for seed in seeds]
        for method, choice in choices.items()
    }


def read_choices(path: Path, ground: str) -> dict[str, Choice]:
    """What an earlier benchmark decided, but for methods with an `ascent` that is gone.

    Raises:
        ValueError: the file has no such ground.
    """
    document = json.loads(path.read_text(encoding="utf-8"))
    if ground not in document:
        raise ValueError(f"chosen: expected a result with the ground {ground!r}, got {path}")
    return {
        method: Choice(own["title"], Recipe(**own["recipe"]), own["validation"])
        for method, own in document[ground]["choices"].items()
        if own["recipe"].get("ascent") != "previous"
    }


def _environment() -> dict[str, object]:
    extra = {package: version(package) for package in _PACKAGES}
    return {**provenance(torch.device("cpu")), "further_versions": extra}


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(tyro.cli(Generalization, description=__doc__))
