"""One call of a training script: data, every split, results."""

import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vqa.datasets import DataSet, load_dataset, summary
from vqa.io.files import owned_folder, write_json
from vqa.models import other_owner
from vqa.provenance import provenance
from vqa.training.checkpoint import (
    Scale,
    TrainerState,
    is_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from vqa.training.distributed import ProcessGroup, process_group
from vqa.training.dry_run import dry_run
from vqa.training.evaluate import (
    Predictions,
    measured,
    medians,
    peak_memory,
    predict,
    scale_of,
    table,
    write_predictions,
)
from vqa.training.landscape import landscape_of
from vqa.training.loop import TrainingRun, fit
from vqa.training.optim import load_weights
from vqa.training.settings import RUNS, Settings, plain
from vqa.training.split_samples import Parts, Samples, load_also, parts_of_splits
from vqa.training.task import Task

_SHOWN = 20  # of files that cannot be read; all are in the results
_ENOUGH = 256  # files of a large training part for the mean and deviation of its scores
# Settings of how files are cut, beside those that concern training alone.
_CUTS = {"sampling", "frames", "test_clips", "variant", "crop"}


def run_script(settings: Settings, task: Task) -> Path | None:
    """Do what the settings ask for; the results file, None after a dry run."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    with (
        process_group(settings.device) as group,
        redirect_stdout(sys.stdout if group.is_main else None),  # one voice is enough
    ):
        dataset, also = _load_data(settings, group)
        by_split = parts_of_splits(dataset, also, settings)
        if group.is_main:
            task.prepare(
                [sample.path for own in (dataset, *also.values()) for sample in own.samples]
            )
        group.barrier()
        if settings.dry_run:
            dry_run(task, settings, by_split[settings.splits[0]], group)
            return None
        folder = output_folder(task, settings)
        with owned_folder(folder) if group.is_main else nullcontext():
            return _Session(task, settings, group, folder).run(dataset, by_split)


def output_folder(task: Task, settings: Settings) -> Path:
    trained = f"{settings.perturb}-seed-{settings.seed}"
    kind = trained if settings.evaluate is None else "evaluated"
    return settings.output or RUNS / task.script / f"{settings.dataset}-{kind}"


def _load_data(settings: Settings, group: ProcessGroup) -> tuple[DataSet, dict[str, DataSet]]:
    if not group.is_main:  # what has to be built is built once
        group.barrier()
    dataset = load_dataset(
        settings.dataset,
        settings.data_root,
        settings.annotations,
        score_column=settings.score_column,
        drop_missing=settings.missing_files == "skip",
    )
    also = load_also(settings)
    if group.is_main:
        group.barrier()
    for each in (dataset, *also.values()):
        print(summary(each))
    return dataset, also


@dataclass(frozen=True)
class _Session:
    """All splits of one call."""

    task: Task
    settings: Settings
    group: ProcessGroup
    folder: Path  # of the results

    def run(self, dataset: DataSet, by_split: Mapping[int, Parts]) -> Path:
        """Train or load, and score, split by split; the results file."""
        began, main = time.perf_counter(), self.group.is_main
        path, scores = self.folder / "results.json", self.folder / "predictions.csv"
        if main and self.settings.resume == "never":  # an older run's would lie beside this one's
            path.unlink(missing_ok=True)
            scores.unlink(missing_ok=True)
        results = []
        predictions: dict[int, list[Predictions]] = {}
        for split, parts in by_split.items():
            result, predictions[split] = self._run_split(parts, split)
            results.append(result)
            print(f"split {split}:\n{table([result])}")
            if bad_files := result["bad_files"]:
                print(f"left out: {len(bad_files)} files that cannot be read")
                print("\n".join(f"  {message}" for message in bad_files[:_SHOWN]))
        if main:
            write_predictions(scores, predictions)
            write_json(
                path,
                {
                    "script": self.task.script,
                    "dataset": dataset.name,
                    "opinion_scores": "synthetic" if dataset.synthetic else "human",
                    "settings": plain(self.settings),
                    "median": medians(results),
                    "splits": results,
                    "seconds": time.perf_counter() - began,
                    "processes": self.group.world_size,
                    "provenance": provenance(self.group.device),
                },
            )
        if len(results) > 1:
            print(f"median of {len(results)} splits:\n{table(results)}")
        print(f"Predictions, the model's own scores: {scores}\nResults: {path}")
        return path

    def _run_split(self, parts: Parts, split: int) -> tuple[dict[str, Any], list[Predictions]]:
        task, settings, group = self.task, self.settings, self.group
        if settings.evaluate is not None:
            torch.manual_seed(settings.seed)
            model = task.build().to(group.device)
            print(load_weights(model, settings.evaluate))
            for difference in _trained_otherwise(task, settings, settings.evaluate):
                print(f"warning: {difference}")
            return self._score(model, TrainerState(), parts, split)
        folder = self.folder / f"split-{split}"
        run = TrainingRun(task, settings, parts.train, split, group, parts.chooses(settings))
        fit(run, folder)
        result, predictions = self._score(run.tested_model, run.state, parts, split)
        scale = self._scale(run.tested_model, parts, predictions)
        if scale is None:
            print(
                "warning: the scores of the training part, predicted or given, are all the same or"
                " not finite; the checkpoint has no scale of opinion scores"
            )
        else:
            result["scale"] = scale._asdict()
        best = folder / "best.pt"
        if group.is_main and (checkpoint := load_checkpoint(best)).scale != scale:
            save_checkpoint(best, replace(checkpoint, scale=scale))
        return result, predictions

    def _score(
        self, model: nn.Module, state: TrainerState, parts: Parts, split: int
    ) -> tuple[dict[str, Any], list[Predictions]]:
        """One split of results.json, and its predictions: of training and validation part first."""
        settings, group = self.settings, self.group
        wanted: dict[str, Samples] = {"test": parts.test, **parts.also}
        if settings.select_on == "validation" and settings.part == "test":
            wanted = {"validation": parts.validation, **wanted}
        if settings.train_score and settings.part == "test":
            wanted = {"train": parts.train, **wanted}
        predictions = [self._predict(model, own, name) for name, own in wanted.items()]
        scores = {own.part: asdict(measured(own, settings)) for own in predictions}
        train, test = scores.get("train"), scores["test"]
        gap = None
        if train is not None:
            gap = {name: train[name] - test[name] for name in ("srcc", "plcc")}
        bad_files = {*group.all_gather(state.bad_files)}
        seconds = state.step_seconds
        result = {
            "split": split,
            "test": test,
            "train": train,
            "validation": scores.get("validation"),
            "also": {name: scores[name] for name in parts.also},  # other data sets
            "best_epoch": state.best_epoch or None,
            "steps": state.step,
            "seconds": state.seconds,  # of training
            "median_step_seconds": statistics.median(seconds) if seconds else None,
            "peak_memory_bytes": peak_memory(group.device),
            "sizes": {own.part: len(own.samples) for own in predictions},
            "bad_files": sorted(bad_files.union(*(own.bad_files for own in predictions))),
            "scale": None,  # from the model's own scores to opinion scores
            "landscape": landscape_of(model, self.task, settings, parts.train, group),
            "gap": gap,
        }
        return result, predictions

    def _scale(
        self, model: nn.Module, parts: Parts, predictions: Sequence[Predictions]
    ) -> Scale | None:
        """Of the predictions of the training part, or of some of it where none were asked for."""
        found = next((own for own in predictions if own.part == "train"), None)
        if found is None:
            some = parts.train[:: -(-len(parts.train) // _ENOUGH)]  # lists are often sorted
            found = self._predict(model, some, "scale")
        return scale_of(found)

    def _predict(self, model: nn.Module, samples: Samples, title: str) -> Predictions:
        return predict(model, self.task, samples, self.settings, self.group, title)


def _trained_otherwise(task: Task, settings: Settings, weights: Path) -> Iterator[str]:
    """What weights do not tell by their shapes: that they were trained on files cut otherwise."""
    own = plain(settings)
    if not is_checkpoint(weights):
        if owner := other_owner(weights, own.get("model", "")):
            yield f"{weights.name} is known as {owner}'s, whose files are cut in another way"
        return
    checkpoint = load_checkpoint(weights)
    if checkpoint.script != task.script:
        yield f"{weights} was trained by {checkpoint.script}.py, which cuts files in another way"
    for name in sorted(_CUTS & own.keys() & checkpoint.settings.keys()):
        before = checkpoint.settings[name]
        if before != own[name]:
            yield f"{weights} was trained with {name} {before!r}, it is tested with {own[name]!r}"
