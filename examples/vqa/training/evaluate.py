"""Predicted scores of labelled files and how well they agree with the opinion scores."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from vqa.datasets import Sample
from vqa.metrics import Agreement, agreement
from vqa.progress import progress_bar
from vqa.training.checkpoint import Scale
from vqa.training.distributed import Place
from vqa.training.loader import LabelledFiles, evaluation_loader
from vqa.training.sampler import every_sample
from vqa.training.settings import Settings
from vqa.training.task import ScoringTask


@dataclass(frozen=True)
class Predictions:
    """Predicted and opinion scores of the samples whose files could be read."""

    samples: tuple[Sample, ...]
    predicted: tuple[float, ...]
    """The model's own, on whatever scale its loss has left them."""
    bad_files: tuple[str, ...]
    part: str = "test"
    """What the files are for."""

    @property
    def scores(self) -> tuple[float, ...]:
        """Opinion scores."""
        return tuple(sample.score for sample in self.samples)


def autocast(settings: Settings, device: torch.device) -> AbstractContextManager[object]:
    """The region in which the model computes with the precision of the settings."""
    if settings.amp == "none":
        return nullcontext()
    dtype = torch.bfloat16 if settings.amp == "bf16" else torch.float16
    return torch.autocast(device.type, dtype)


@torch.no_grad()
def score_each(
    model: nn.Module,
    task: ScoringTask,
    samples: Sequence[Sample],
    settings: Settings,
    place: Place,
    batch: int = 1,
) -> Iterator[tuple[int, float | str]]:
    """Number and predicted score, or what is wrong with its file, of this process's samples.

    They come in their order. With batches of one a score depends on the file alone: not on the
    files beside it, on how many processes share them, or on the number of workers.

    Args:
        model: in evaluation mode.
        task: reads and scores.
        samples: files; their opinion scores do not matter.
        settings: workers, precision, and whether a bad file stops everything.
        place: this process among its peers.
        batch: files at a time.
    """
    files = LabelledFiles(samples, task.read, settings.bad_files == "skip")
    draws = every_sample(len(samples), place.rank, place.processes)
    loader = evaluation_loader(files, draws, batch, settings.workers, place.device.type == "cuda")
    for read in loader:
        found: dict[int, float | str] = dict(read.bad_files)
        if len(read):
            with autocast(settings, place.device):
                scores = task.scores(model, read.to(place.device).inputs, "test")
            found |= zip(read.indices, scores.float().tolist(), strict=True)
        yield from sorted(found.items())


def predict(
    model: nn.Module,
    task: ScoringTask,
    samples: Sequence[Sample],
    settings: Settings,
    place: Place,
    title: str = "test",
    batch: int = 1,
) -> Predictions:
    """Predicted scores of samples in their order, in evaluation mode; shared by all processes."""
    training = model.training
    model.eval()
    mine: list[tuple[int, float | str]] = []
    total = len(every_sample(len(samples), place.rank, place.processes))
    with progress_bar(title, total, "file", leave=False, disable=not place.is_first) as bar:
        for found in score_each(model, task, samples, settings, place, batch):
            mine.append(found)
            bar.update()
    model.train(training)
    everybody = sorted(place.gather(mine), key=lambda found: found[0])
    good = [(index, score) for index, score in everybody if not isinstance(score, str)]
    return Predictions(
        samples=tuple(samples[index] for index, _ in good),
        predicted=tuple(score for _, score in good),
        bad_files=tuple(why for _, why in everybody if isinstance(why, str)),
        part=title,
    )


def measured(predictions: Predictions, settings: Settings) -> Agreement:
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
    return agreement(
        predicted,
        predictions.scores,
        logistic_fit=settings.logistic_fit,
        logistic_start=settings.logistic_start,
    )


def scale_of(predicted: ArrayLike, scores: ArrayLike) -> Scale | None:
    """How predictions [N] lie beside opinion scores [N]; None where either come to nothing."""
    predicted, scores = (np.asarray(values, np.float64) for values in (predicted, scores))
    if len(predicted) < 2 or not np.isfinite(predicted).all():
        return None
    if np.ptp(predicted) == 0 or np.ptp(scores) == 0:
        return None
    return Scale(*(float(v) for own in (predicted, scores) for v in (own.mean(), own.std())))
