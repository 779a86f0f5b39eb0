"""Predicted scores of labelled files and how well they agree with the opinion scores."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from vqa.datasets import Sample
from vqa.metrics import Agreement, agreement
from vqa.progress import progress_bar
from vqa.training.checkpoint import Scale
from vqa.training.distributed import Place
from vqa.training.loader import LabelledFiles, evaluation_loader
from vqa.training.sampler import every_sample
from vqa.training.settings import Settings
from vqa.training.task import Task


@dataclass(frozen=True)
class Predictions:
    """Predicted and opinion scores of the files that could be read."""

    predicted: tuple[float, ...]
    scores: tuple[float, ...]
    bad_files: tuple[str, ...]
    part: str = "test"
    """What the files are for, for messages."""


def autocast(settings: Settings, device: torch.device) -> AbstractContextManager[object]:
    """The region in which the model computes with the precision of the settings."""
    if settings.amp == "none":
        return nullcontext()
    dtype = torch.bfloat16 if settings.amp == "bf16" else torch.float16
    return torch.autocast(device.type, dtype)


@torch.no_grad()
def predict(
    model: nn.Module,
    task: Task,
    samples: Sequence[Sample],
    settings: Settings,
    place: Place,
    title: str = "test",
) -> Predictions:
    """Predicted scores of samples in their order, in evaluation mode; shared by all processes."""
    training = model.training
    model.eval()
    files = LabelledFiles(samples, task.read, settings.bad_files == "skip")
    draws = every_sample(len(samples), place.rank, place.processes)
    loader = evaluation_loader(
        files, draws, task.test_batch, settings.workers, place.device.type == "cuda"
    )
    predicted: list[tuple[int, float]] = []
    bad_files: list[str] = []
    with progress_bar(title, len(draws), "file", leave=False, disable=not place.is_first) as bar:
        for batch in loader:
            bad_files += batch.bad_files
            bar.update(len(batch) + len(batch.bad_files))
            if len(batch):
                with autocast(settings, place.device):
                    scores = task.scores(model, batch.to(place.device).inputs, "test")
                predicted += zip(batch.indices, scores.float().tolist(), strict=True)
    model.train(training)
    ordered = sorted(place.gather(predicted))
    return Predictions(
        predicted=tuple(score for _, score in ordered),
        scores=tuple(samples[index].score for index, _ in ordered),
        bad_files=tuple(place.gather(bad_files)),
        part=title,
    )


def measured(predictions: Predictions, logistic_fit: bool) -> Agreement:
    """Agreement with the opinion scores; NaN where the predictions have come to nothing.

    A training that diverged, or a model that says the same of every file, is a result too. So are
    opinion scores that are all the same, of which a warning says whose they are.
    """
    predicted, scores = np.asarray(predictions.predicted), np.asarray(predictions.scores)
    if len(scores) < 2 or np.ptp(scores) == 0:
        held = f", all with the opinion score {scores[0]:g}" if len(scores) else ""
        warnings.warn(
            f"{predictions.part}: expected different opinion scores, got {len(scores)} files{held};"
            " no correlation is defined (NaN)",
            stacklevel=2,
        )
        return Agreement(math.nan, math.nan, math.nan, math.nan)
    if len(predicted) < 2 or not np.isfinite(predicted).all() or np.ptp(predicted) == 0:
        return Agreement(math.nan, math.nan, math.nan, math.nan)
    return agreement(predicted, predictions.scores, logistic_fit=logistic_fit)


def scale_of(predictions: Predictions) -> Scale | None:
    """How the predictions lie beside the opinion scores; None where they have come to nothing."""
    predicted, scores = (
        np.asarray(values, np.float64) for values in (predictions.predicted, predictions.scores)
    )
    if len(predicted) < 2 or not np.isfinite(predicted).all() or np.ptp(predicted) == 0:
        return None
    return Scale(*(float(v) for own in (predicted, scores) for v in (own.mean(), own.std())))
