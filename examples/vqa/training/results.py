"""What a script leaves behind: the scores of every split and their medians."""

from __future__ import annotations

import csv
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from vqa.io.files import open_csv, replacing
from vqa.metrics import Agreement
from vqa.training.evaluate import Predictions

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
    parts: dict[str, list[Mapping[str, float] | None]] = {
        part: [_plain(getattr(result, part)) for result in results]
        for part in ("train", "validation", "test", "gap")
    }
    for name in results[0].also:
        parts[name] = [_plain(result.also[name]) for result in results]
    return {part: _median(scores) for part, scores in parts.items()}


def _plain(scores: Agreement | Scores | None) -> Mapping[str, float] | None:
    return asdict(scores) if isinstance(scores, Agreement) else scores


def _median(scores: Sequence[Mapping[str, float] | None]) -> dict[str, float] | None:
    known = [score for score in scores if score is not None]
    if len(known) < len(scores):
        return None
    return {name: statistics.median(score[name] for score in known) for name in known[0]}


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
    several = len(by_split) > 1
    with replacing(path) as unfinished, open_csv(unfinished) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["path", "score", "opinion", "part", *(["split"] if several else [])])
        for split, predictions in by_split.items():
            for own in predictions:
                for sample, score in zip(own.samples, own.predicted, strict=True):
                    row = [sample.path, score, sample.score, own.part]
                    table.writerow([*row, split] if several else row)


def peak_memory(device: torch.device) -> int | None:
    """Bytes: the most that torch held on a GPU, or this process on a CPU; None on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource  # which Windows lacks

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
