"""What weight perturbation does to a pretrained network that is fine-tuned on real opinion scores.

Runs `examples/finetune_image_quality.py`'s training on a folder of images by many methods:

* first what each method leaves open, by validation parts of the training images on seeds of their
  own, with fewer epochs and smaller squares;
* then every method at its chosen value, from fresh seeds.

Every run is scored with BatchNorm's statistics as the training left them and with clean ones.
Finished runs are kept beside the result and are not run again, so that the benchmark goes on where
it stopped.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor

sys.path.extend(str(Path(__file__).resolve().parents[1] / folder) for folder in (".", "examples"))

from benchmarks.generalization_grounds.comparison import compare, holm
from benchmarks.generalization_grounds.ground import HeldOut
from benchmarks.generalization_grounds.items import interval, resampled_srcc
from finetune_image_quality import (
    Finetuning,
    Images,
    clean_statistics,
    finetune,
    load_parts,
    predict,
)
from vqa.errors import expected_errors_in_one_line
from vqa.io.files import digest, replacing, write_json
from vqa.metrics import Agreement, agreement
from vqa.provenance import provenance

_RESULTS = Path(__file__).parent / "results"
# The pilot chose AWP's gamma on seeds 0 and 1.
_FIRST_SEED, _FIRST_TUNING_SEED = 2, 1000
# Raise it when the same settings would give other scores.
_VERSION = 1

Values = Mapping[str, Any]

PLAIN: Values = {"perturb": "plain", "gamma": 0.0}
"""Settings of plain training."""
_GAMMAS = tuple({"gamma": gamma} for gamma in (1e-4, 5e-4, 2e-3, 1e-2, 4e-2))
GRIDS: Mapping[str, tuple[Values, Sequence[Values]]] = {
    "awp": ({"perturb": "awp"}, _GAMMAS),
    "awp-update": ({"perturb": "awp-update"}, _GAMMAS),
    "awp-previous": ({"perturb": "awp-previous"}, _GAMMAS),
    "rwp": ({"perturb": "rwp"}, _GAMMAS),
    "dropout": (PLAIN, [{"dropout": share} for share in (0.2, 0.5, 0.8)]),
    "weight-decay": (PLAIN, [{"weight_decay": decay} for decay in (0.1, 1.0, 10.0)]),
}
"""Per method, settings that differ from plain training's and candidates for what is open."""
GONE = ("awp-previous",)
"""Methods that there are no longer: their finished runs are read, and none is run."""


@dataclass(frozen=True)
class Pretrained:
    """Settings of the benchmark."""

    data_root: Path
    """Folder of the images with a table that names a part for every image."""
    weights: str = "package"
    """As of the training script."""
    backbone: str = "tf_efficientnet_lite0"
    seeds: int = 3
    """How many seeds (2, 3, ...) are reported."""
    tuning_seeds: int = 1
    epochs: int = 8
    size: int = 170
    crop: int = 128
    batch: int = 32
    tuning_epochs: int = 4
    tuning_crop: int = 96
    compile: bool = True
    """Train through `torch.compile`: the same to rounding, in two thirds of the time."""
    output: Path = _RESULTS
    """Folder of pretrained.json and of the finished runs, pretrained-runs."""

    @property
    def plain(self) -> Finetuning:
        """Plain training on all training images, without anything chosen."""
        return Finetuning(
            data_root=self.data_root,
            backbone=self.backbone,
            weights=self.weights,
            size=self.size,
            crop=self.crop,
            batch=self.batch,
            epochs=self.epochs,
            validation_share=0.0,
            device="cpu",
            compile=self.compile,
            **PLAIN,
        )


@dataclass(frozen=True)
class Run:
    """One finished training."""

    settings: Values
    """The training script's, folders aside."""
    held: HeldOut
    """What it is scored on: images left out of the training part, or the test part."""
    predicted: tuple[float, ...]
    """Scores of the held images with BatchNorm's statistics as trained."""
    predicted_clean: tuple[float, ...]
    """And with statistics taken anew at the final weights."""
    opinion: tuple[float, ...]
    train_srcc: float
    epoch: int
    history: Sequence[Mapping[str, float]]
    cpu_seconds: float
    provenance: Mapping[str, object]

    @property
    def agreement(self) -> Agreement:
        """With the opinion scores; NaN where a training diverged."""
        return agreement_of(self.predicted, self.opinion)


def main(benchmark: Pretrained) -> None:
    """Run what is missing, and write the result after every run on the test part."""
    parts = load_parts(benchmark.plain)
    folder = benchmark.output / "pretrained-runs"
    for settings, held in trainings(benchmark, folder):
        if settings.perturb not in GONE and load_run(folder, settings, held) is None:
            print(f"{settings.perturb} {_changes(settings)} on {held}", flush=True)
            save_run(folder, settings, train_and_score(settings, held, parts))
            if held == "test":
                write_result(benchmark, folder)
    write_result(benchmark, folder)


def trainings(benchmark: Pretrained, folder: Path) -> Iterator[tuple[Finetuning, HeldOut]]:
    """All trainings in the order of their importance; the chosen ones follow from the tuning."""
    for settings in tuning_settings(benchmark):
        yield settings, "validation"
    for values in chosen_ways(benchmark, folder).values():
        for seed in _seeds(benchmark):
            yield replace(benchmark.plain, seed=seed, **values), "test"


def tuning_settings(benchmark: Pretrained) -> Iterator[Finetuning]:
    """Every candidate of every method on every tuning seed."""
    for seed in range(_FIRST_TUNING_SEED, _FIRST_TUNING_SEED + benchmark.tuning_seeds):
        for method in GRIDS:
            for candidate in _candidates(method):
                yield _tuned(benchmark, seed, candidate)


def chosen_ways(benchmark: Pretrained, folder: Path) -> dict[str, Values]:
    """Every method at the value that its validation scores choose, once all of them are there.

    Plain, `update` and RWP come twice, for as many epochs as AWP and for as many passes.
    """
    best = {
        method: _candidates(method)[int(np.nanargmax(scores))]
        for method in GRIDS
        if len(scores := validation_scores(benchmark, folder, method)) == len(GRIDS[method][1])
    }
    ways: dict[str, Values] = {"plain": PLAIN, **best}
    for name in ("plain", "awp-update", "rwp"):
        if name in ways:
            ways[f"{name}, twice the epochs"] = {**ways[name], "epochs": 2 * benchmark.epochs}
    return {**ways, "plain, epoch chosen": {**PLAIN, "validation_share": 0.1}}


def validation_scores(benchmark: Pretrained, folder: Path, method: str) -> list[float]:
    """Mean validation SRCC of a method's candidates, as far as all tuning seeds are there."""
    means = []
    for candidate in _candidates(method):
        runs = [
            load_run(folder, _tuned(benchmark, seed, candidate), "validation")
            for seed in range(_FIRST_TUNING_SEED, _FIRST_TUNING_SEED + benchmark.tuning_seeds)
        ]
        if any(run is None for run in runs):
            break
        means.append(statistics.mean(run.agreement.srcc for run in runs if run is not None))
    return means


def train_and_score(settings: Finetuning, held: HeldOut, parts: Mapping[str, Images]) -> Run:
    """One training and its scores, on the CPU."""
    torch.compiler.reset()  # each run has a model of its own
    own = parts_for(settings, held, parts)
    began = time.thread_time()
    model, epoch, history = finetune(settings, own)
    seconds = time.thread_time() - began
    predicted = predict(model, own["test"], settings)
    fitted = predict(model, own["train"], settings)
    clean_statistics(model, own["train"], settings)
    return Run(
        settings=_described(settings),
        held=held,
        predicted=_rounded(predicted),
        predicted_clean=_rounded(predict(model, own["test"], settings)),
        opinion=_rounded(_scores(own["test"])),
        train_srcc=agreement_of(fitted.tolist(), _scores(own["train"]).tolist()).srcc,
        epoch=epoch,
        history=history,
        cpu_seconds=seconds,
        provenance=provenance(torch.device("cpu")),
    )


def parts_for(
    settings: Finetuning, held: HeldOut, parts: Mapping[str, Images]
) -> dict[str, Images]:
    """Images to train on, to choose the epoch on, and, as "test", to be scored on.

    Two ninths of the training images are left out to be scored on where the test part is not.
    """
    train, test = parts["train"], parts["test"]
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(settings.seed))
    train = [train[number] for number in order.tolist()]
    if held == "validation":
        left_out = len(train) * 2 // 9
        test, train = train[:left_out], train[left_out:]
    choose = round(settings.validation_share * len(train))
    return {"train": train[choose:], "validation": train[:choose], "test": test}


def agreement_of(predicted: Sequence[float], scores: Sequence[float]) -> Agreement:
    """Agreement of predictions [N] with opinion scores [N]; NaN where the training diverged."""
    try:
        return agreement(predicted, scores)
    except ValueError:
        return Agreement(math.nan, math.nan, math.nan, math.nan)


def save_run(folder: Path, settings: Finetuning, run: Run) -> None:
    """Keep a finished run."""
    with replacing(_path(folder, settings, run.held)) as unfinished:
        unfinished.write_text(json.dumps(asdict(run)) + "\n", encoding="utf-8")


def load_run(folder: Path, settings: Finetuning, held: HeldOut) -> Run | None:
    """A finished run with these settings, whatever the versions; None if there is none."""
    try:
        return Run(**json.loads(_path(folder, settings, held).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def write_result(benchmark: Pretrained, folder: Path) -> None:
    """What the finished runs say, as pretrained.json."""
    write_json(
        benchmark.output / "pretrained.json",
        {
            "settings": _described(benchmark.plain),
            "tuning": {
                method: [
                    {**candidate, "validation_srcc": mean}
                    for candidate, mean in zip(
                        _candidates(method),
                        validation_scores(benchmark, folder, method),
                        strict=False,
                    )
                ]
                for method in GRIDS
            },
            "methods": methods(benchmark, folder),
        },
    )


def methods(benchmark: Pretrained, folder: Path) -> list[dict[str, object]]:
    """A row for each way that has finished runs, compared with plain on the seeds of both."""
    ways = chosen_ways(benchmark, folder)
    found = {name: _runs(benchmark, folder, values) for name, values in ways.items()}
    rows = [_row(name, ways[name], runs, found["plain"]) for name, runs in found.items() if runs]
    tested = [row for row in rows if "p_value" in row]
    for row, p_holm in zip(tested, holm([row["p_value"] for row in tested]), strict=True):
        row["p_holm"] = p_holm
    return rows


def _row(
    name: str, values: Values, own: Mapping[int, Run], plain: Mapping[int, Run]
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "method": name,
        "values": dict(values),
        "seeds": list(own),
        "test_srcc": [run.agreement.srcc for run in own.values()],
        "test_srcc_clean_statistics": [
            agreement_of(run.predicted_clean, run.opinion).srcc for run in own.values()
        ],
        "test_plcc": [run.agreement.plcc for run in own.values()],
        "train_srcc": [run.train_srcc for run in own.values()],
        "cpu_seconds": [run.cpu_seconds for run in own.values()],
        "time": [run.provenance["time"] for run in own.values()],
    }
    both = [seed for seed in own if seed in plain]
    if name == "plain" or len(both) < 2:
        return row
    scores = {
        name: [own[s].agreement.srcc for s in both],
        "plain": [plain[s].agreement.srcc for s in both],
    }
    test = asdict(compare(scores, [(name, "plain")])[0])
    samples, plain_samples = (
        resampled_srcc([runs[s].predicted for s in both], plain[both[0]].opinion)
        for runs in (own, plain)
    )
    test["over_images"] = interval(samples - plain_samples)
    return row | test


def _runs(benchmark: Pretrained, folder: Path, values: Values) -> dict[int, Run]:
    found = {
        seed: load_run(folder, replace(benchmark.plain, seed=seed, **values), "test")
        for seed in _seeds(benchmark)
    }
    return {seed: run for seed, run in found.items() if run is not None}


def _seeds(benchmark: Pretrained) -> range:
    return range(_FIRST_SEED, _FIRST_SEED + benchmark.seeds)


def _candidates(method: str) -> list[Values]:
    base, grid = GRIDS[method]
    return [{**base, **candidate} for candidate in grid]


def _tuned(benchmark: Pretrained, seed: int, values: Values) -> Finetuning:
    shorter: Values = {"epochs": benchmark.tuning_epochs, "crop": benchmark.tuning_crop}
    return replace(benchmark.plain, seed=seed, **shorter, **values)


def _described(settings: Finetuning) -> dict[str, Any]:
    """What a run is known by: fields that came after the first runs only where they matter."""
    values = {"dataset": "csv", **asdict(settings)}  # the script once took other lists, too
    for folder in ("data_root", "annotations", "output"):
        del values[folder]
    if settings.perturb_last == 1:
        del values["perturb_last"]
    return values


def _changes(settings: Finetuning) -> str:
    share = "" if settings.perturb_last == 1 else f" at the last {settings.perturb_last:.0%}"
    return f"gamma {settings.gamma:g}{share}, {settings.epochs} epochs, seed {settings.seed}"


def _scores(images: Images) -> Tensor:
    return torch.tensor([score for _, score in images])


def _rounded(scores: Tensor) -> tuple[float, ...]:
    return tuple(float(f"{score:.7g}") for score in scores.tolist())


def _path(folder: Path, settings: Finetuning, held: HeldOut) -> Path:
    decides = {"version": _VERSION, "held": held, **_described(settings)}
    return folder / f"{settings.perturb}-{settings.seed}-{digest(decides)[:12]}.json"


if __name__ == "__main__":
    with expected_errors_in_one_line():
        torch.set_num_threads(1)
        main(tyro.cli(Pretrained, description=__doc__))
