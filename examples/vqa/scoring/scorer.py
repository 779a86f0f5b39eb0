"""A trained model that scores any file, alone or among others to the same bit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from vqa.datasets import Sample
from vqa.io.media_names import MediaKind
from vqa.io.video import is_hdr
from vqa.scoring.finding import Found
from vqa.scoring.reading import of_kind
from vqa.scoring.scales import ScoreScale
from vqa.training.distributed import Place
from vqa.training.evaluate import score_each
from vqa.training.loader import computing_threads
from vqa.training.settings import Settings
from vqa.training.task import ScoringTask


@dataclass(frozen=True)
class FileScore:
    """What became of one file."""

    path: Path
    score: float | None
    """None where there is an error."""
    error: str | None = None
    """In one line."""
    clips: tuple[float, ...] = ()
    """Scores of the clips or frames, where they were asked for."""
    hdr: bool = False
    """Whether the file is HDR, so that its score is doubtful."""


@dataclass(frozen=True)
class Scorer:
    """A model, how it is fed, and the scale of what it says."""

    name: str
    """Of the model and where it comes from, for people."""
    model: nn.Module
    task: ScoringTask
    settings: Settings
    """Of its training, whose number of threads decides the last bits of a score."""
    kind: MediaKind
    scale: ScoreScale
    place: Place

    def score_each(
        self, files: Sequence[Found], workers: int, per_clip: bool = False
    ) -> Iterator[FileScore]:
        """What becomes of every file, in their order.

        Args:
            files: what is to be scored.
            workers: processes that read files; the scores do not depend on it.
            per_clip: keep the scores of clips or frames, too.

        Raises:
            ValueError: fewer than no workers, or clips of images.
        """
        if per_clip and self.kind == "image":
            raise ValueError("per_clip: expected a model for videos, images have one score each")
        if workers < 0:
            raise ValueError(f"workers: expected at least 0, got {workers}")
        tried = [found for found in files if found.error is None]
        samples = [Sample(found.path, math.nan) for found in tried]
        task = replace(self.task, read=of_kind(self.kind, self.task.read))
        settings = replace(self.settings, bad_files="skip", workers=workers)
        self.model.eval()
        with (
            computing_threads(settings.threads or torch.get_num_threads()),
            _outputs_of(self.model.get_submodule(self.task.clips)) as outputs,
        ):
            found_scores = score_each(self.model, task, samples, settings, self.place)
            for found in files:
                if found.error is not None:
                    yield FileScore(found.path, None, found.error)
                else:
                    _, score = next(found_scores)
                    told = self._told(found.path, score)
                    if per_clip and told.score is not None:
                        told = replace(told, clips=self._clips(*outputs))
                    yield told
                outputs.clear()

    def _clips(self, output: Tensor) -> tuple[float, ...]:
        """Scores of the clips or frames of one file."""
        rows = output.float()
        rows = rows.squeeze(0) if rows.ndim > 1 else rows  # of SimpleVQA the first counts files
        return tuple(map(self.scale.tell, rows.reshape(len(rows), -1).mean(dim=1).tolist()))

    def _told(self, path: Path, score: float | str) -> FileScore:
        if isinstance(score, str):
            return FileScore(path, None, " ".join(score.splitlines()))
        if not math.isfinite(score):
            return FileScore(path, None, f"the model gives {score}")
        return FileScore(path, self.scale.tell(score), hdr=is_hdr(path))


@contextmanager
def _outputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """What a module gave since the list was cleared."""
    outputs: list[Tensor] = []
    hook = module.register_forward_hook(lambda module, given, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.remove()
