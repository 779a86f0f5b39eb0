"""Predicted scores of labelled files and how well they agree with the opinion scores.

With what a script leaves behind of them: the scores of every split and their medians.
"""

from __future__ import annotations

import math
import statistics
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from vqa.datasets import Sample
from vqa.io.files import write_csv
from vqa.metrics import Agreement, agreement
from vqa.processes import progress_bar
from vqa.training.checkpoint import Scale
from vqa.training.distributed import ProcessGroup
from vqa.training.loader import LabelledFiles, evaluation_loader, every_sample
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
    group: ProcessGroup,
    batch: int = 1,
) -> Iterator[tuple[int, float | str]]:
    """Number and predicted score, or what is wrong with its file, of this process's samples.

    They come in their order; their opinion scores do not matter. With batches of one a score
    depends on the file alone: not on the files beside it, on how many processes share them, or on
    the number of workers. The model is in evaluation mode. Of the settings, workers, precision and
    whether a bad file stops everything count.
    """
    files = LabelledFiles(samples, task.read, settings.bad_files == "skip")
    draws = every_sample(len(samples), group.rank, group.world_size)
    loader = evaluation_loader(files, draws, batch, settings.workers, group.device.type == "cuda")
    for read in loader:
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
    total = len(every_sample(len(samples), group.rank, group.world_size))
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


Scores = Mapping[str, float]


@dataclass(frozen=True)
class SplitResult:
    """One trained (or loaded) model on the parts of one split."""

    split: int
    test: Agreement
    train: Agreement | None = None
    validation: Agreement | None = None
    also: Mapping[str, Agreement] = field(default_factory=dict)
    """Scores on other data sets, by name."""
    best_epoch: int | None = None
    steps: int = 0
    seconds: float = 0.0
    """Training time."""
    median_step_seconds: float | None = None
    peak_memory_bytes: int | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Samples scored, by part or data set."""
    bad_files: Sequence[str] = ()
    scale: Mapping[str, float] | None = None
    """From the model's own scores to opinion scores; None where nothing was trained."""
    landscape: Mapping[str, object] | None = None
    """Training loss around the weights: positions, losses, sharpness."""

    @property
    def gap(self) -> Scores | None:
        """SRCC and PLCC, train minus test."""
        if self.train is None:
            return None
        return {name: getattr(self.train, name) - getattr(self.test, name) for name in _GAP}

    def document(self) -> dict[str, object]:
        """The same as plain values."""
        return {**asdict(self), "gap": self.gap}


_GAP = ("srcc", "plcc")


def medians(results: Sequence[SplitResult]) -> dict[str, dict[str, float] | None]:
    """Median over splits of every score, by part or data set; the gap's is that of the gaps.

    >>> from vqa.metrics import Agreement
    >>> splits = [SplitResult(n, Agreement(0.1 * n, 0.5, 0.5, 1.0)) for n in range(3)]
    >>> medians(splits)["test"]["srcc"]
    0.1
    """
    documents: list[dict[str, Any]] = [result.document() for result in results]
    parts = {
        part: [own[part] for own in documents] for part in ("train", "validation", "test", "gap")
    }
    parts |= {name: [own["also"][name] for own in documents] for name in results[0].also}
    found: dict[str, dict[str, float] | None] = {}
    for part, scores in parts.items():
        found[part] = None
        if all(scores):
            names = scores[0]
            found[part] = {name: statistics.median(own[name] for own in scores) for name in names}
    return found


def table(results: Sequence[SplitResult]) -> str:
    """The medians as lines to read."""
    lines = [f"{'':<24}{'SRCC':>8}{'PLCC':>8}{'KRCC':>8}{'RMSE':>9}"]
    for part, scores in medians(results).items():
        if scores is not None:
            cells = [f"{scores[name]:8.4f}" for name in ("srcc", "plcc", "krcc") if name in scores]
            rmse = f"{scores['rmse']:9.4f}" if "rmse" in scores else ""
            lines.append(f"{part:<24}{''.join(cells)}{rmse}")
    return "\n".join(lines)


def write_predictions(path: Path, by_split: Mapping[int, Sequence[Predictions]]) -> None:
    """Write what stands behind the results: `path,score,opinion,part`, a row for every file scored.

    Scores are the model's own, bit for bit, on the scale that its loss has left them on. Of several
    splits a fifth column says which.
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
