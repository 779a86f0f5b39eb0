"""Predicted scores of labelled files, and how well they agree with the opinion scores."""

import math
import statistics
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vqa.datasets import Sample
from vqa.io.files import write_csv
from vqa.metrics import Agreement, agreement
from vqa.processes import progress_bar
from vqa.training.checkpoint import Scale
from vqa.training.distributed import ProcessGroup
from vqa.training.loader import batch_loader, draws_in_order
from vqa.training.settings import Settings
from vqa.training.task import ScoringTask


@dataclass(frozen=True)
class Predictions:
    """Predicted and opinion scores of the samples whose files could be read."""

    samples: tuple[Sample, ...]
    predicted: tuple[float, ...]  # the model's own, on whatever scale its loss has left them
    bad_files: tuple[str, ...]
    part: str = "test"  # what the files are for

    @property
    def scores(self) -> tuple[float, ...]:
        """Opinion scores."""
        return tuple(sample.score for sample in self.samples)


def autocast(settings: Settings, device: torch.device) -> torch.autocast:
    """The region in which the model computes with the precision of the settings."""
    dtype = torch.float16 if settings.amp == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=settings.amp != "none")


@torch.no_grad()
def score_each(
    model: nn.Module,
    task: ScoringTask,
    samples: Sequence[Sample],
    settings: Settings,
    group: ProcessGroup,
    batch: int = 1,
) -> Iterator[tuple[int, float | str]]:
    """Number and predicted score, or what is wrong with its file, of this process's samples.

    In their order, of a model in evaluation mode. With batches of one a score depends on the file
    alone: not on the files beside it, the number of processes that share them, or of workers. Of
    the settings, workers, precision and whether a bad file stops everything count.
    """
    draws = draws_in_order(len(samples), batch, group.rank, group.world_size)
    for read in batch_loader(samples, task.read, settings, draws, group.device):
        found: dict[int, float | str] = dict(read.bad_files)
        if len(read):
            with autocast(settings, group.device):
                scores = task.scores(model, read.to(group.device).inputs, "test")
            found |= zip(read.indices, scores.float().tolist(), strict=True)
        yield from sorted(found.items())


def predict(
    model: nn.Module,
    task: ScoringTask,
    samples: Sequence[Sample],
    settings: Settings,
    group: ProcessGroup,
    title: str = "test",
    batch: int = 1,
) -> Predictions:
    """Predicted scores of samples in their order, in evaluation mode; shared by all processes."""
    training = model.training
    model.eval()
    mine: list[tuple[int, float | str]] = []
    total = len(samples[group.rank :: group.world_size])
    with progress_bar(title, total, "file", leave=False, disable=not group.is_main) as bar:
        for found in score_each(model, task, samples, settings, group, batch):
            mine.append(found)
            bar.update()
    model.train(training)
    everybody = sorted(group.all_gather(mine), key=lambda found: found[0])
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
    scores = predictions.scores
    if len(set(scores)) < 2:
        held = f", all with the opinion score {scores[0]:g}" if scores else ""
        warnings.warn(
            f"{predictions.part}: expected different opinion scores, got {len(scores)} files{held};"
            " no correlation is defined (NaN)",
            stacklevel=2,
        )
    if scale_of(predictions) is None:
        return Agreement(math.nan, math.nan, math.nan, math.nan)
    return agreement(
        predictions.predicted,
        scores,
        logistic_fit=settings.logistic_fit,
        logistic_start=settings.logistic_start,
    )


def scale_of(predictions: Predictions) -> Scale | None:
    """How predicted scores lie beside opinion scores; None where either come to nothing."""
    predicted, scores = np.asarray(predictions.predicted), np.asarray(predictions.scores)
    if len(predicted) < 2 or not np.isfinite(predicted).all():
        return None
    if np.ptp(predicted) == 0 or np.ptp(scores) == 0:
        return None
    return Scale(*(float(v) for own in (predicted, scores) for v in (own.mean(), own.std())))


def medians(splits: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float] | None]:
    """Median over the splits of results.json of every score and of the gap, by part or data set."""
    names = ("train", "validation", "test", "gap")
    parts = {name: [own[name] for own in splits] for name in names}
    parts |= {name: [own["also"][name] for own in splits] for name in splits[0]["also"]}
    found: dict[str, dict[str, float] | None] = {}
    for part, scores in parts.items():
        found[part] = None
        if all(scores):
            found[part] = {
                metric: statistics.median(own[metric] for own in scores) for metric in scores[0]
            }
    return found


def table(splits: Sequence[Mapping[str, Any]]) -> str:
    """The medians as lines to read."""
    lines = [f"{'':<24}{'SRCC':>8}{'PLCC':>8}{'KRCC':>8}{'RMSE':>9}"]
    for part, scores in medians(splits).items():
        if scores is not None:
            cells = [f"{scores[name]:8.4f}" for name in ("srcc", "plcc", "krcc") if name in scores]
            rmse = f"{scores['rmse']:9.4f}" if "rmse" in scores else ""
            lines.append(f"{part:<24}{''.join(cells)}{rmse}")
    return "\n".join(lines)


def write_predictions(path: Path, by_split: Mapping[int, Sequence[Predictions]]) -> None:
    """Write what stands behind the results: `path,score,opinion,part`, a row for every file scored.

    Scores are the model's own, bit for bit. Of several splits a fifth column says which.
    """
    rows = [
        (sample.path, score, sample.score, own.part, split)
        for split, predictions in by_split.items()
        for own in predictions
        for sample, score in zip(own.samples, own.predicted, strict=True)
    ]
    columns = 4 + (len(by_split) > 1)
    header = ("path", "score", "opinion", "part", "split")
    write_csv(path, header[:columns], (row[:columns] for row in rows))


def peak_memory(device: torch.device) -> int | None:
    """Bytes: the most that torch held on a GPU, or this process on a CPU; None on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource  # which Windows lacks

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
