"""Score your own videos or images with a trained model.

    python examples/score.py runs/fast_vqa/mini-ugc-awp-seed-42/split-0/best.pt my_videos
    python examples/score.py runs/finetune_image_quality/best.pt my_photographs
    python examples/score.py best.pt holiday.mp4 concert.mkv list.txt --output scores.csv
    python examples/score.py FAST_VQA_B_1_4.pth my_videos --model fast_vqa

Writes `path,score,error`. Exit status: 0 if every file has a score, 1 if some have, 2 if none has
or the call was wrong.
"""

import math
import os
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, get_args

import torch
import tyro
from torch import Tensor, nn

import fast_vqa
import sama_iqa
import sama_vqa
import simple_vqa
from finetune_image_quality import Backbone, Finetuning, read_image, squares
from training_scripts import SCRIPTS, TrainingScript, restored_settings, script_and_settings
from vqa.datasets import SPECS
from vqa.errors import expected_errors_in_one_line
from vqa.features.cache import VERSION, FeatureCache
from vqa.features.key_frames import FeatureSettings, build_extractor
from vqa.io.files import digest, sha256, shown, write_csv
from vqa.models import other_owner
from vqa.processes import progress_bar
from vqa.provenance import device_name, source_digest, versions
from vqa.scoring.finding import find_files
from vqa.scoring.report import (
    PER_CLIP,
    PER_FOLDER,
    clip_rows,
    folder_rows,
    refuse_other_file,
    report,
    score_table,
)
from vqa.scoring.scorer import PUBLISHED, FileScore, Scorer, ScoreScale, own_scale
from vqa.training.checkpoint import Checkpoint, CheckpointError, is_checkpoint, load_checkpoint
from vqa.training.distributed import DeviceName, ProcessGroup, own_device
from vqa.training.loader import Inputs
from vqa.training.optim import load_checkpoint_weights, load_weights
from vqa.training.settings import Settings
from vqa.training.task import Phase, ScoringTask

AnyPath = str | os.PathLike[str]
PublishedModel = Literal["fast_vqa", "fast_vqa_m", "sama_vqa", "sama_iqa", "simple_vqa"]

# A worker takes some seconds to begin.
_FILES_FOR_A_WORKER, _MOST_WORKERS = 32, 4


@dataclass(frozen=True)
class _Features:
    """How SimpleVQA's features were made."""

    settings: FeatureSettings
    motion: str | None = None
    """Fingerprint of the motion extractor; None if unknown."""


# Published weights are fed as the paper's presets feed them in testing.
_PUBLISHED: dict[PublishedModel, tuple[str, Settings]] = {
    "fast_vqa": ("fast_vqa", fast_vqa.PAPER),
    "fast_vqa_m": ("fast_vqa", replace(fast_vqa.PAPER, model="fast_vqa_m")),
    "sama_vqa": ("sama_vqa", sama_vqa.PAPER),
    "sama_iqa": ("sama_iqa", sama_iqa.PAPER),
    "simple_vqa": ("simple_vqa", simple_vqa.PAPER),
}


@dataclass(frozen=True)
class Score:
    """What to score, with which model."""

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """A best.pt of a training script; with --model a file of published weights."""
    paths: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="PATH [PATH ...]")
    ]
    """Videos or images, folders of them (searched below), or lists (.txt, .csv, .tsv)."""
    output: Path = Path("scores.csv")
    """File of the table. An older one is replaced at the end."""
    per_clip: Path | None = None
    """A second table with the score of every clip (of SimpleVQA: key frame) of a video."""
    per_folder: Path | None = None
    """A second table with the mean score of every folder."""
    resume: Literal["auto", "never"] = "auto"
    """Continue an interrupted scoring with the same model, or start again."""
    model: PublishedModel | None = None
    """Model whose published weights CHECKPOINT has."""
    raw: bool = False
    """The model's own scores instead of those on the scale of the opinion scores."""
    slowfast_weights: Path | None = None
    """File of the published slowfast_r50 of PyTorchVideo, for SimpleVQA's motion features."""
    device: DeviceName = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda`, or `cuda:1` for one GPU of several."""
    workers: int | None = None
    """Processes that read files. Default: up to 4, by the number of files. Scores are the same."""


def score_files(
    checkpoint: AnyPath,
    paths: AnyPath | Iterable[AnyPath],
    *,
    model: PublishedModel | None = None,
    raw: bool = False,
    slowfast_weights: AnyPath | None = None,
    device: DeviceName = "auto",
    workers: int = 0,
    per_clip: bool = False,
) -> list[FileScore]:
    """Score files as the command does.

    Args:
        checkpoint: a training script's best.pt, or with `model` a file of published weights.
        paths: files, folders (searched below) or lists, or a single one; each file counts once.
        model: whose published weights they are.
        raw: the model's own scores instead of those on the scale of the opinion scores that it was
            trained on (a checkpoint), or of the published scale (FAST-VQA).
        slowfast_weights: published motion network, for a SimpleVQA that was trained with it.
        device: where the model runs.
        workers: processes that read files; with any, guard the calling script by
            `if __name__ == "__main__":`. Scores do not depend on it.
        per_clip: give the scores of clips or frames of videos, too.

    Returns:
        Path, score (None if there is none) and error (None if there is none) of every file in the
        order found, and whether it is HDR.

    Raises:
        ValueError: checkpoint, weights, a list or an argument cannot be used. A file that cannot be
            read raises nothing.
    """
    motion = None if slowfast_weights is None else Path(slowfast_weights)
    scorer = load_scorer(Path(checkpoint), model, raw, motion, device)
    asked = [paths] if isinstance(paths, str | os.PathLike) else paths
    search = find_files([Path(path) for path in asked], scorer.kind)
    return list(scorer.score_each(search.files, workers, per_clip))


def load_scorer(
    path: Path,
    model: PublishedModel | None = None,
    raw: bool = False,
    slowfast_weights: Path | None = None,
    device: DeviceName = "auto",
) -> Scorer:
    """The model in a file, ready to score; arguments as of `score_files`.

    Raises:
        ValueError: the file cannot be used for this.
    """
    where = own_device(device)
    if model is not None:
        return _published(path, model, raw, slowfast_weights, where)
    try:
        checkpoint = load_checkpoint(path)
    except CheckpointError as error:
        if is_checkpoint(path) or not path.is_file():
            raise
        names = ", ".join(get_args(PublishedModel))
        raise CheckpointError(f"{error}; published weights need --model ({names})") from error
    scale = own_scale() if raw else _scale_of(path, checkpoint)
    name = f"{shown(path)}, of {checkpoint.script}.py, epoch {checkpoint.epoch}"
    if checkpoint.script == "finetune_image_quality":
        scorer = _finetuned(name, path, checkpoint, slowfast_weights, scale, where)
    else:
        script, settings = script_and_settings(path, checkpoint)
        features = _features_of(path, checkpoint, settings)
        scorer = _scorer(name, script, settings, features, slowfast_weights, scale, where)
    load_checkpoint_weights(scorer.model, path, checkpoint)
    return scorer


def _published(
    path: Path,
    model: PublishedModel,
    raw: bool,
    slowfast_weights: Path | None,
    device: torch.device,
) -> Scorer:
    if is_checkpoint(path):
        raise ValueError(
            f"model: expected none for {path}, a checkpoint that says itself which it is, got"
            f" {model!r}"
        )
    if owner := other_owner(path, model):
        told = f"{path.name} is known as {owner}'s, whose files are cut and scored in another way"
        if not raw:
            raise ValueError(
                f"model: expected weights of {model}, {told}; --raw gives the scores all the same"
            )
        print(f"warning: {told} than by {model}")
    name, paper = _PUBLISHED[model]
    scale = PUBLISHED.get(model, own_scale("none is published with these weights"))
    features = _Features(FeatureSettings()) if model == "simple_vqa" else None
    scorer = _scorer(
        f"{model}, weights of {shown(path)}",
        SCRIPTS[name],
        paper,
        features,
        slowfast_weights,
        own_scale() if raw else scale,
        device,
    )
    print(load_weights(scorer.model, path))
    return scorer


def _scorer(
    name: str,
    script: TrainingScript,
    settings: Settings,
    features: _Features | None,
    slowfast_weights: Path | None,
    scale: ScoreScale,
    device: torch.device,
) -> Scorer:
    """With weights that are still to be loaded."""
    # What the training began with, how it went on and in which precision plays no part.
    settings = replace(settings, pretrained=None, finetune_from=None, evaluate=None, amp="none")
    if features is None or not isinstance(settings, simple_vqa.SimpleVqa):
        _refuse(slowfast_weights)
        task = script.task(settings)
    else:
        extractor = build_extractor(features.settings.motion, slowfast_weights, device)
        if features.motion not in (None, extractor.fingerprint):
            raise ValueError(
                f"slowfast_weights: expected those of the training, {slowfast_weights} holds others"
            )
        task = simple_vqa.task_without_cache(settings, features.settings, extractor)
    return Scorer(
        name, _built(task, device), task, settings, script.kind, scale, ProcessGroup(device)
    )


def _finetuned(
    name: str,
    path: Path,
    checkpoint: Checkpoint,
    slowfast_weights: Path | None,
    scale: ScoreScale,
    device: torch.device,
) -> Scorer:
    """A backbone of timm with weights that are still to be loaded."""
    _refuse(slowfast_weights)
    # Older checkpoints name the kind of list that they were trained on.
    known = {name: value for name, value in checkpoint.settings.items() if name != "dataset"}
    settings = restored_settings(Finetuning, path, replace(checkpoint, settings=known))
    task = ScoringTask(
        script=checkpoint.script,
        build=partial(Backbone, settings.backbone, "none", settings.dropout),
        read=partial(_read_middle_square, settings.size, settings.crop),
        scores=_backbone_scores,
    )
    return Scorer(
        name, _built(task, device), task, Settings(), "image", scale, ProcessGroup(device)
    )


def _read_middle_square(
    size: int, crop: int, path: Path, generator: torch.Generator | None
) -> Inputs:
    return tuple(squares([(read_image(path, size), math.nan)], crop))


def _backbone_scores(model: nn.Module, inputs: Inputs, phase: Phase) -> Tensor:
    (seen,) = inputs
    scores: Tensor = model(seen.contiguous(memory_format=torch.channels_last))
    return scores


def _built(task: ScoringTask, device: torch.device) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # first weights are drawn, and then replaced
        return task.build().to(device)


def _refuse(slowfast_weights: Path | None) -> None:
    if slowfast_weights is not None:
        raise ValueError(
            f"slowfast_weights: expected none but for SimpleVQA, got {slowfast_weights}"
        )


def _scale_of(path: Path, checkpoint: Checkpoint) -> ScoreScale:
    if checkpoint.scale is None:
        raise CheckpointError(
            f"{path}: expected the scale of the opinion scores, which is written when a training"
            " ends and its scores have come to something: run the command of the training again,"
            " or ask for the model's own scores with --raw"
        )
    dataset = checkpoint.settings.get("dataset", "csv")
    scale, spec = checkpoint.scale, SPECS.get(dataset)
    kind = "synthetic opinion scores" if spec and spec.build else "opinion scores"
    name = (
        f"the {kind} of its training ({dataset}: mean {scale.opinion_mean:.3g}, deviation"
        f" {scale.opinion_deviation:.3g})"
    )
    return ScoreScale(name, scale.opinion)


def _features_of(path: Path, checkpoint: Checkpoint, settings: Settings) -> _Features | None:
    """How SimpleVQA's features were made; None for the other models."""
    if not isinstance(settings, simple_vqa.SimpleVqa):
        return None
    made = checkpoint.features
    if made is None:  # written before this was noted
        made = FeatureCache.open(settings.features).made()
    if made["version"] != VERSION:
        raise CheckpointError(
            f"{path}: expected a training on features of version {VERSION}, got"
            f" {made['version']}: train again"
        )
    return _Features(FeatureSettings(**made["settings"]), made["motion"])


def main(settings: Score) -> int:
    """Score, write and print; the exit status."""
    if settings.per_clip is not None:
        refuse_other_file(settings.per_clip, PER_CLIP, "per_clip")
    if settings.per_folder is not None:
        refuse_other_file(settings.per_folder, PER_FOLDER, "per_folder")
    scorer = load_scorer(
        settings.checkpoint,
        settings.model,
        settings.raw,
        settings.slowfast_weights,
        settings.device,
    )
    search = find_files(settings.paths, scorer.kind)
    if not search.files:
        raise ValueError(
            f"paths: expected {scorer.kind}s, found none{_told(search.passed_over, ' but ')}"
        )
    print(f"model: {scorer.name}\nscale: {scorer.scale.name}")
    if search.passed_over:
        print(f"passed over: {_told(search.passed_over)}")
    workers = settings.workers
    if workers is None:
        workers = min(len(search.files) // _FILES_FOR_A_WORKER, _MOST_WORKERS, os.cpu_count() or 1)
    per_clip = settings.per_clip is not None
    resume = settings.resume == "auto"
    with (
        score_table(
            settings.output, search.files, _fingerprint(settings, scorer), resume
        ) as scores,
        progress_bar("score", len(search.files), "file", initial=len(scores.known)) as bar,
    ):
        if scores.known:
            print(f"resumed: {len(scores.known)} files have a score from before")
        left = [found for found in search.files if found.path not in scores.known]
        for score in scorer.score_each(left, workers, per_clip):
            scores.add(score)
            bar.update()
        if settings.per_clip is not None:
            write_csv(settings.per_clip, PER_CLIP, clip_rows(scores.rows))
        if settings.per_folder is not None:
            write_csv(settings.per_folder, PER_FOLDER, folder_rows(scores.rows))
    return report(scores.rows, settings.output)


def _fingerprint(settings: Score, scorer: Scorer) -> str:
    """Of all but the files that decides a score, to the last bit."""
    weights = [file for file in (settings.checkpoint, settings.slowfast_weights) if file]
    return digest(
        {
            "weights": [sha256(file) for file in weights],
            "settings": [settings.model, settings.raw, settings.per_clip is not None],
            "threads": scorer.settings.threads or torch.get_num_threads(),
            "device": device_name(scorer.group.device),
            "source": source_digest(),
            "versions": versions(("torch", "torchvision", "av", "pillow")),
        }
    )


def _told(passed_over: Counter[str], before: str = "") -> str:
    counts = ", ".join(f"{number} {sort}" for sort, number in passed_over.most_common())
    return f"{before}{counts}" if counts else ""


if __name__ == "__main__":
    with expected_errors_in_one_line():
        sys.exit(main(tyro.cli(Score, description=__doc__)))
