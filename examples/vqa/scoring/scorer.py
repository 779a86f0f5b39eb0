"""A trained model that scores any file, alone or among others to the same bit.

Files of the wrong kind are refused by name: a photograph is a video of one frame to a video
decoder, which would give it a score.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from vqa.datasets import Sample
from vqa.io.files import MediaKind, kind_by_name, shown
from vqa.io.video import is_hdr
from vqa.scoring.finding import Found
from vqa.training.distributed import ProcessGroup
from vqa.training.evaluate import score_each
from vqa.training.loader import Inputs, Read, computing_threads
from vqa.training.settings import Settings
from vqa.training.task import ScoringTask

# These may move, by Pillow's names and those of their files.
_MAY_MOVE = ("GIF", "PNG", "WEBP", "AVIF")
_MAY_MOVE_BY_NAME = (".gif", ".png", ".apng", ".webp", ".avif")
_OF_VIDEOS = ("MPEG",)


class KindError(ValueError):
    """A file holds an image where a video is wanted, or a video where an image is."""


def _read(kind: MediaKind, read: Read, path: Path, generator: torch.Generator | None) -> Inputs:
    if kind == "video" and is_still_image(path):
        raise KindError(
            f"{shown(path)}: expected a video, found an image; a model for images scores it"
        )
    try:
        return read(path, generator)
    except ValueError as error:
        if kind == "image" and kind_by_name(path) == "video":
            raise KindError(
                f"{shown(path)}: expected an image, found a video; a model for videos scores it"
            ) from error
        raise


def is_still_image(path: Path) -> bool:
    """Whether a file holds one picture, as photographs do, or pages that do not move."""
    if kind_by_name(path) == "image" and path.suffix.lower() not in _MAY_MOVE_BY_NAME:
        return True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                moves = image.format in _MAY_MOVE and bool(getattr(image, "is_animated", False))
                return image.format not in _OF_VIDEOS and not moves
    except Image.DecompressionBombError:
        return True
    except Exception:  # no image for Pillow, whose decoders raise whatever the damage leads to
        return False


@dataclass(frozen=True)
class ScoreScale:
    """From a model's own score to the one that is told, and what to call that."""

    name: str
    tell: Callable[[float], float]


def own_scale(why: str = "") -> ScoreScale:
    """The model's scores as they are."""
    return ScoreScale(f"the model's own ({why})" if why else "the model's own", float)


def _sigmoid(file: str, mean: float, deviation: float) -> ScoreScale:
    def tell(score: float) -> float:
        standardised = (score - mean) / deviation
        small = math.exp(-abs(standardised))  # this one cannot overflow
        return (1 if standardised >= 0 else small) / (1 + small)

    return ScoreScale(
        f"0 to 1, as published for {file} alone, of which it makes sigmoid((raw - m) / s)", tell
    )


# Mean and deviation of raw scores, as the authors of the weights give them.
PUBLISHED = {
    "fast_vqa": _sigmoid("FAST_VQA_B_1_4.pth", -0.110198185, 0.04178565),
    "fast_vqa_m": _sigmoid("FAST_VQA_M_1_4.pth", 0.023889644, 0.030781006),
}


@dataclass(frozen=True)
class FileScore:
    path: Path
    score: float | None  # None where there is an error
    error: str | None = None  # in one line
    clips: tuple[float, ...] = ()  # scores of the clips or frames, where they were asked for
    hdr: bool = False  # whether the file is HDR, so that its score is doubtful


@dataclass(frozen=True)
class Scorer:
    """A model, how it is fed, and the scale of what it says."""

    name: str  # of the model and where it comes from, for people
    model: nn.Module
    task: ScoringTask
    settings: Settings  # of its training; the number of threads decides a score's last bits
    kind: MediaKind
    scale: ScoreScale
    group: ProcessGroup

    def score_each(
        self, files: Sequence[Found], workers: int, per_clip: bool = False
    ) -> Iterator[FileScore]:
        """What becomes of every file, in their order; scores do not depend on `workers`."""
        if per_clip and self.kind == "image":
            raise ValueError("per_clip: expected a model for videos, images have one score each")
        if workers < 0:
            raise ValueError(f"workers: expected at least 0, got {workers}")
        samples = [Sample(found.path, math.nan) for found in files if found.error is None]
        read = partial(_read, self.kind, self.task.read)
        task = replace(self.task, read=read)
        settings = replace(self.settings, bad_files="skip", workers=workers)
        self.model.eval()
        outputs: list[Tensor] = []
        clips = self.model.get_submodule(self.task.clips)
        with (
            computing_threads(settings.threads or torch.get_num_threads()),
            clips.register_forward_hook(lambda module, given, output: outputs.append(output)),
        ):
            found_scores = score_each(self.model, task, samples, settings, self.group)
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
        rows = output.float()
        rows = rows.squeeze(0) if rows.ndim > 1 else rows  # of SimpleVQA the first counts files
        return tuple(map(self.scale.tell, rows.reshape(len(rows), -1).mean(dim=1).tolist()))

    def _told(self, path: Path, score: float | str) -> FileScore:
        if isinstance(score, str):
            return FileScore(path, None, " ".join(score.splitlines()))
        if not math.isfinite(score):
            return FileScore(path, None, f"the model gives {score}")
        return FileScore(path, self.scale.tell(score), hdr=is_hdr(path))
