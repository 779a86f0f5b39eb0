"""Does weight perturbation help adversarial training, which AWP was made for?

A small convolutional network is trained on attacked images (PGD), plainly and by other ways, and
its robust accuracy is measured by an attack of more steps and restarts:

* `digits`: scikit-learn's handwritten digits;
* `fashion-mnist`: Fashion-MNIST, whose four files Debian's package dataset-fashion-mnist ships.

What a method leaves open is decided by robust accuracy on validation images of tuning seeds, which
nothing else uses. Then every method is trained from fresh seeds; differences to plain training are
taken seed by seed. Early stopping takes a plain training's weights from the epoch at which they
were most robust on the validation images. Finished runs are kept beside the result, one line each,
and are not run again: an interrupted benchmark goes on where it stopped.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import nn

sys.path.extend(str(Path(__file__).resolve().parents[1] / folder) for folder in (".", "examples"))

from benchmarks.adversarial_training.attack import Attack
from benchmarks.adversarial_training.images import Digits, FashionMnist, Split
from benchmarks.adversarial_training.training import Plain, Way, robust_accuracy, train
from benchmarks.generalization_grounds.comparison import Comparison, compare
from vqa.errors import expected_errors_in_one_line
from vqa.io.files import digest, replacing, write_json
from vqa.metrics import summarise
from vqa.provenance import provenance, versions

GroundName = Literal["digits", "fashion-mnist"]
Part = Literal["validation", "test"]
Outcomes = Mapping[str, Sequence[Mapping[str, Any]]]
"""Per method what its runs gave, one for each seed, the seeds in the same order."""

_RESULTS = Path(__file__).parent / "results"
_FIRST_TUNING_SEED = 1000
# Raise it when the same settings would give other scores.
_VERSION = 1

_GAMMAS = (1e-3, 5e-3, 1e-2, 2e-2, 5e-2)
_DECAYS = (1e-2, 2e-2, 5e-2, 1e-1, 2e-1)
BOTH = "AWP and weight decay"
WAYS: Mapping[str, Sequence[Way]] = {
    "plain": [Way()],
    "weight decay": [Way(weight_decay=decay) for decay in (2e-3, 5e-3, *_DECAYS)],
    "SAM": [Way("sam", rho) for rho in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)],
    "AWP": [Way("awp", gamma) for gamma in _GAMMAS],
    BOTH: [Way("awp", gamma, decay) for gamma in (5e-3, 1e-2, 2e-2) for decay in _DECAYS],
    "AWP at the end": [Way("awp-end", gamma) for gamma in _GAMMAS],
    "RWP": [Way("rwp", gamma) for gamma in (3e-2, 1e-1, 3e-1)],
}
"""Per method the candidates; where there is one, nothing is open."""
EARLY = "plain, stopped early"


@dataclass(frozen=True)
class Ground:
    """Images, and how they are fitted and attacked."""

    data: Digits | FashionMnist
    plain: Plain
    measured: Attack

    def describe(self) -> dict[str, object]:
        """Everything next to way, seed and part that decides a run."""
        data = {key: value for key, value in asdict(self.data).items() if key != "folder"}
        return {"data": data, "plain": asdict(self.plain), "measured": asdict(self.measured)}


@dataclass(frozen=True)
class Adversarial:
    """Settings of the benchmark."""

    grounds: tuple[GroundName, ...] = ("digits",)
    seeds: int = 10
    """How many seeds (0, 1, ...) are reported, at least two."""
    tuning_seeds: int = 2
    """How many seeds (1000, 1001, ...) decide what is open."""
    fashion_mnist: Path | None = None
    """Folder of Fashion-MNIST's files."""
    output: Path = _RESULTS
    """Folder of adversarial.json and of the finished runs, adversarial-runs; grounds that do not
    run keep their results."""

    def __post_init__(self) -> None:
        for name, number, least in (
            ("seeds", self.seeds, 2),
            ("tuning_seeds", self.tuning_seeds, 1),
        ):
            if number < least:
                raise ValueError(f"{name}: expected at least {least}, got {number}")


def build_ground(name: GroundName, fashion_mnist: Path | None) -> Ground:
    """A ground by its name.

    Raises:
        ValueError: the folder that it needs is not given.
    """
    if name == "digits":
        return _ground(Digits(), radius=0.15, epochs=60, channels=32)
    if fashion_mnist is None:
        raise ValueError(
            "fashion_mnist: expected the folder of Fashion-MNIST's four files"
            " (Debian's package dataset-fashion-mnist ships them), got None"
        )
    return _ground(FashionMnist(fashion_mnist), radius=0.1, epochs=40, channels=16)


def _ground(data: Digits | FashionMnist, radius: float, epochs: int, channels: int) -> Ground:
    plain = Plain(Attack(radius, steps=5), epochs, channels=channels)
    return Ground(data, plain, Attack(radius, steps=20, restarts=3))


@dataclass(frozen=True)
class Runs:
    """The finished runs of a ground, kept in a file with a line for each."""

    path: Path
    ground: Ground

    @cached_property
    def _kept(self) -> dict[str, dict[str, Any]]:
        if not self.path.exists():
            return {}
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return {line["key"]: line for line in map(json.loads, lines)}

    def run(self, way: Way, seed: int, part: Part) -> dict[str, Any]:
        """What this run gives, from the file where it is finished already."""
        decides = [_VERSION, self.ground.describe(), asdict(way), seed, part]
        key = digest(decides)[:16]
        if key not in self._kept:
            print(f"{self.path.stem}: {_named(way)}, seed {seed}, {part}", flush=True)
            self._kept[key] = {
                "key": key,
                "way": asdict(way),
                "seed": seed,
                "part": part,
                "outcome": train_and_measure(self.ground, way, seed, part),
                "provenance": provenance(torch.device("cpu")),
            }
            with replacing(self.path) as unfinished:
                lines = [json.dumps(line) + "\n" for line in self._kept.values()]
                unfinished.write_text("".join(lines), encoding="utf-8")
        outcome: dict[str, Any] = self._kept[key]["outcome"]
        return outcome


def train_and_measure(ground: Ground, way: Way, seed: int, part: Part) -> dict[str, Any]:
    """One training and its accuracies; on the test images only where these are the part.

    `robust` is under the ground's measuring attack, at the last epoch. Plain training's also come
    for its best check.
    """
    split = ground.data.split(seed)
    trained = train(split, way, ground.plain, seed)
    outcome: dict[str, Any] = {
        "checks": [[check.epoch, round(check.validation_robust, 5)] for check in trained.checks],
        "passes": trained.passes,
        "cpu_seconds": round(trained.cpu_seconds, 2),
    }
    if part == "test":
        outcome |= _accuracies(trained.last, split, ground.measured)
        if way == Way():
            outcome["early"] = _accuracies(trained.best, split, ground.measured)
    return outcome


def _accuracies(model: nn.Module, split: Split, measured: Attack) -> dict[str, float]:
    return {
        "robust": robust_accuracy(model, split.test, measured),
        "clean": robust_accuracy(model, split.test, replace(measured, restarts=0)),
        "train_robust": robust_accuracy(model, split.fitted, measured),
    }


def main(benchmark: Adversarial) -> None:
    """Tune, train and compare on every ground; print and write what came of it."""
    path = benchmark.output / "adversarial.json"
    document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name in benchmark.grounds:
        ground = build_ground(name, benchmark.fashion_mnist)
        runs = Runs(benchmark.output / "adversarial-runs" / f"{name}.jsonl", ground)
        document[name] = measure(runs, benchmark)
        write_json(path, document)


def measure(runs: Runs, benchmark: Adversarial) -> dict[str, Any]:
    """All that is said about one ground, printed and as a document."""
    tuning = range(_FIRST_TUNING_SEED, _FIRST_TUNING_SEED + benchmark.tuning_seeds)
    seeds = range(benchmark.seeds)
    validation = {
        method: [_validation_score(runs, way, tuning) for way in ways]
        for method, ways in WAYS.items()
    }
    chosen = {
        method: WAYS[method][scores.index(max(scores))] for method, scores in validation.items()
    }
    outcomes: dict[str, list[dict[str, Any]]] = {method: [] for method in chosen}
    for seed in seeds:
        for method, way in chosen.items():
            outcomes[method].append(runs.run(way, seed, "test"))
    rows = compared(outcomes)
    print(f"\n{markdown_table(rows, chosen)}\n")
    return {
        "settings": runs.ground.describe(),
        "provenance": provenance(torch.device("cpu")),
        "further_versions": versions(("scikit-learn", "pytorch_optimizer")),
        "seeds": list(seeds),
        "tuning_seeds": list(tuning),
        "tuning": {
            method: [
                {**asdict(way), "validation_robust": score}
                for way, score in zip(ways, validation[method], strict=True)
            ]
            for method, ways in WAYS.items()
        },
        "methods": rows,
        "contrasts": [asdict(test) for test in contrasts(outcomes)],
    }


def _validation_score(runs: Runs, way: Way, seeds: Sequence[int]) -> float:
    """Mean robust accuracy on the validation images at the last epoch."""
    checks = [runs.run(way, seed, "validation")["checks"] for seed in seeds]
    return float(statistics.mean(own[-1][1] for own in checks))


def compared(outcomes: Outcomes) -> list[dict[str, Any]]:
    """A row for each method, plain first; p values are Holm's over the methods.

    `gap` is robust accuracy on the fitted images minus that on the test images.
    """
    scores = _scores(outcomes)
    plain_passes = sum(own["passes"] for own in outcomes["plain"])
    rows: dict[str, dict[str, Any]] = {
        method: {
            "method": method,
            "passes": sum(own["passes"] for own in outcomes.get(method, outcomes["plain"]))
            / plain_passes,
            **{what: summarise(values).mean for what, values in own.items()},
            "robust_by_seed": own["robust"],
        }
        for method, own in scores.items()
    }
    pairs = [(method, "plain") for method in scores if method != "plain"]
    for what in ("robust", "gap"):
        for test in compare({method: own[what] for method, own in scores.items()}, pairs):
            rows[test.method][f"{what}_minus_plain"] = asdict(test)
    return list(rows.values())


def contrasts(outcomes: Outcomes) -> list[Comparison]:
    """Robust accuracy of AWP against every other method, and of what it adds to weight decay.

    Corrected as a family of its own.
    """
    robust = {method: own["robust"] for method, own in _scores(outcomes).items()}
    pairs = [("AWP", other) for other in robust if other not in ("AWP", "plain")]
    if BOTH in robust:
        pairs.append((BOTH, "weight decay"))
    return compare(robust, pairs)


def _scores(outcomes: Outcomes) -> dict[str, dict[str, list[float]]]:
    """Per method and kind of accuracy one value for each seed; early stopping comes after plain."""
    every: dict[str, Sequence[Mapping[str, Any]]] = {}
    for method, own in outcomes.items():
        every[method] = own
        if method == "plain":
            every[EARLY] = [outcome["early"] for outcome in own]
    return {
        method: {
            "robust": [o["robust"] for o in own],
            "clean": [o["clean"] for o in own],
            "train_robust": [o["train_robust"] for o in own],
            "gap": [o["train_robust"] - o["robust"] for o in own],
        }
        for method, own in every.items()
    }


def markdown_table(rows: Sequence[Mapping[str, Any]], chosen: Mapping[str, Way]) -> str:
    """The rows for people."""
    lines = [
        "| method | chosen | passes | robust accuracy | minus plain (95 %) | p (Holm)"
        " | train-test gap | minus plain (95 %) | clean accuracy |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        setting = _named(chosen[row["method"]]) if row["method"] in chosen else ""
        robust, gap = (_difference(row.get(f"{what}_minus_plain")) for what in ("robust", "gap"))
        lines.append(
            f"| {row['method']} | {setting} | {row['passes']:.2f}"
            f" | {row['robust']:.3f} | {robust[0]} | {robust[1]}"
            f" | {row['gap']:.3f} | {gap[0]} | {row['clean']:.3f} |"
        )
    return "\n".join(lines)


def _difference(test: Mapping[str, Any] | None) -> tuple[str, str]:
    if test is None:
        return "", ""
    interval = f"{test['difference']:+.3f} ({test['low']:+.3f} to {test['high']:+.3f})"
    return interval, f"{test['p_holm']:.2g}"


def _named(way: Way) -> str:
    """A way for people.

    >>> _named(Way("awp", 0.01)), _named(Way(weight_decay=0.005))
    ('awp, gamma 0.01', 'plain, weight decay 0.005')
    >>> _named(Way("awp", 0.01, weight_decay=0.005))
    'awp, gamma 0.01, weight decay 0.005'
    """
    decay = f", weight decay {way.weight_decay:g}"
    if way.kind == "plain":
        return way.kind + decay
    named = f"{way.kind}, {'rho' if way.kind == 'sam' else 'gamma'} {way.magnitude:g}"
    return named + (decay if way.weight_decay != Way().weight_decay else "")


if __name__ == "__main__":
    with expected_errors_in_one_line():
        torch.set_num_threads(1)
        main(tyro.cli(Adversarial, description=__doc__))
