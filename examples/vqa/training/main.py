"""One call of a training script: data, every split, results."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import torch

from vqa.datasets import DataSet, load_dataset, summary
from vqa.io.files import write_json
from vqa.metrics import Agreement
from vqa.provenance import provenance
from vqa.training.checkpoint import Scale, load_checkpoint, save_checkpoint
from vqa.training.distributed import Place, joined_processes
from vqa.training.dry_run import dry_run
from vqa.training.evaluate import measured, predict, scale_of
from vqa.training.landscape import landscape_of
from vqa.training.loop import TrainingRun, fit
from vqa.training.optim import load_weights
from vqa.training.results import SplitResult, medians, peak_memory, table
from vqa.training.settings import RUNS, Settings, plain
from vqa.training.split_samples import Parts, Samples, load_also, parts_of_splits
from vqa.training.task import Task

_SHOWN = 20  # of files that cannot be read; all are in the results


def run_script(settings: Settings, task: Task) -> Path | None:
    """Do what the settings ask for.

    Returns:
        The results file; None after a dry run.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    with (
        joined_processes(settings.device) as place,
        redirect_stdout(sys.stdout if place.is_first else None),  # one voice is enough
    ):
        dataset, also = _load_data(settings, place)
        by_split = parts_of_splits(dataset, also, settings)
        if place.is_first:
            task.prepare(
                [sample.path for own in (dataset, *also.values()) for sample in own.samples]
            )
        place.wait_for_all()
        if settings.dry_run:
            dry_run(task, settings, by_split[settings.splits[0]], place)
            return None
        return _run_splits(task, settings, dataset, by_split, place)


def output_folder(task: Task, settings: Settings) -> Path:
    """Where the results go."""
    kind = settings.perturb if settings.evaluate is None else "evaluated"
    return settings.output or RUNS / task.script / f"{settings.dataset}-{kind}"


def _load_data(settings: Settings, place: Place) -> tuple[DataSet, dict[str, DataSet]]:
    if not place.is_first:  # what has to be built is built once
        place.wait_for_all()
    drop_missing = settings.missing_files == "skip"
    dataset = load_dataset(
        settings.dataset,
        settings.data_root,
        settings.annotations,
        score_column=settings.score_column,
        drop_missing=drop_missing,
    )
    also = load_also(settings)
    if place.is_first:
        place.wait_for_all()
    for each in (dataset, *also.values()):
        print(summary(each))
    return dataset, also


def _run_splits(
    task: Task,
    settings: Settings,
    dataset: DataSet,
    by_split: Mapping[int, Parts],
    place: Place,
) -> Path:
    began, folder = time.perf_counter(), output_folder(task, settings)
    results = []
    for split, parts in by_split.items():
        result = _run_split(task, settings, parts, split, folder / f"split-{split}", place)
        results.append(result)
        print(f"split {split}:\n{table([result])}")
        if result.bad_files:
            print(f"left out: {len(result.bad_files)} files that cannot be read")
            print("\n".join(f"  {message}" for message in result.bad_files[:_SHOWN]))
    path = folder / "results.json"
    if place.is_first:
        write_json(
            path,
            {
                "script": task.script,
                "dataset": dataset.name,
                "opinion_scores": "synthetic" if dataset.synthetic else "human",
                "settings": plain(settings),
                "median": medians(results),
                "splits": [result.document() for result in results],
                "seconds": time.perf_counter() - began,
                "processes": place.processes,
                "provenance": provenance(place.device),
            },
        )
    if len(results) > 1:
        print(f"median of {len(results)} splits:\n{table(results)}")
    print(f"Results: {path}")
    return path


def _run_split(
    task: Task, settings: Settings, parts: Parts, split: int, folder: Path, place: Place
) -> SplitResult:
    run = TrainingRun(task, settings, parts.train, split, place, parts.chooses(settings))
    if settings.evaluate is None:
        fit(run, folder)
    else:
        print(load_weights(run.tested_model, settings.evaluate))
    result, scale = _score(run, parts, split)
    best = folder / "best.pt"
    if settings.evaluate is None and place.is_first:
        checkpoint = load_checkpoint(best)
        if scale is not None and checkpoint.scale != scale:
            save_checkpoint(best, replace(checkpoint, scale=scale))
    return result


def _score(run: TrainingRun, parts: Parts, split: int) -> tuple[SplitResult, Scale | None]:
    """The result, and the scale of the predictions where the training part was scored."""
    settings, counters = run.settings, run.counters
    wanted: dict[str, Samples] = {"test": parts.test, **parts.also}
    if settings.train_score:
        wanted["train"] = parts.train
    if settings.select_on == "validation":
        wanted["validation"] = parts.validation
    scores: dict[str, Agreement] = {}
    bad_files, sizes = list(run.place.gather(counters.bad_files)), {}
    scale: Scale | None = None
    for name, samples in wanted.items():
        predictions = predict(run.tested_model, run.task, samples, settings, run.place, name)
        scores[name] = measured(predictions, settings.logistic_fit)
        sizes[name] = len(predictions.scores)
        bad_files += predictions.bad_files
        if name == "train":
            scale = scale_of(predictions)
    result = SplitResult(
        split=split,
        test=scores["test"],
        train=scores.get("train"),
        validation=scores.get("validation"),
        also={name: scores[name] for name in parts.also},
        best_epoch=counters.best_epoch or None,
        steps=counters.step,
        seconds=counters.seconds,
        median_step_seconds=(
            statistics.median(counters.step_seconds) if counters.step_seconds else None
        ),
        peak_memory_bytes=peak_memory(run.place.device),
        sizes=sizes,
        bad_files=sorted(set(bad_files)),
        landscape=landscape_of(run, parts.train),
    )
    return result, scale
