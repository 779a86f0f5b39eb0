"""A training on disk: all that a run needs to go on as if it had never stopped, and what it gave.

Both are dictionaries of plain values and tensors, which `torch.load(..., weights_only=True)` reads.
A run is resumed only where all that decides its result is the same.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vqa.datasets import Sample
from vqa.io.files import digest, file_state, replacing, sha256
from vqa.training.distributed import ProcessGroup
from vqa.training.settings import Settings

_FORMAT = "torch-awp training run"
# Raise them when files of the older version can no longer be resumed from, or used.
_VERSION = 2
_WEIGHTS_FORMAT, _WEIGHTS_VERSION = "torch-awp examples, weights", 2
_OTHER_FORMATS = {
    _FORMAT: "the state of a run, whose weights are in best.pt",
    "torch-awp examples": "one that the demo wrote before it trained as they do: run it again",
}


class CheckpointError(ValueError):
    """A checkpoint cannot be used, or a run not be resumed from it; the message names the file."""


@dataclass
class TrainerState:
    """How far a run has come."""

    epoch: int = 0  # finished ones
    batch: int = 0  # batches of the current epoch that are done
    step: int = 0  # optimizer steps so far
    best: float = -math.inf  # SRCC + PLCC of the chosen epoch on the part that chooses
    best_epoch: int = 0
    seconds: float = 0.0  # training time so far, over all sessions
    losses: list[float] = field(default_factory=list)  # of the current epoch's steps
    learning_rates: list[float] = field(default_factory=list)  # of all groups, in the last step
    step_seconds: list[float] = field(default_factory=list)  # as `Step.seconds`
    history: list[dict[str, float]] = field(default_factory=list)  # a row per epoch
    bad_files: list[str] = field(default_factory=list)


def save_state(
    path: Path,
    config: Mapping[str, Any],
    state: TrainerState,
    parts: Mapping[str, Any],
    group: ProcessGroup,
) -> None:
    """Write a run's state, of whose parts each has a `state_dict`.

    Called by every process, each of which has random states of its own; written by the first.
    """
    mine = {"cpu": torch.get_rng_state()}
    if group.device.type == "cuda":
        mine["cuda"] = torch.cuda.get_rng_state(group.device)
    random = group.all_gather([mine])
    if not group.is_main:
        return
    states = {name: part.state_dict() for name, part in parts.items()}
    values = {"format": _FORMAT, "version": _VERSION, "identity": dict(config)}
    values |= {"counters": asdict(state), "parts": {**states, "random": random}}
    _save(path, values)


def load_state(
    path: Path, config: Mapping[str, Any], parts: Mapping[str, Any], group: ProcessGroup
) -> TrainerState:
    """Put every part and the random states back to what `save_state` wrote; how far it had come."""
    values = _load(path)
    if not isinstance(values, dict) or values.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: expected the checkpoint of a run, got something else")
    if values.get("version") != _VERSION:
        raise CheckpointError(
            f"{path}: expected version {_VERSION}, got {values.get('version')!r}: choose another"
            " --output, or --resume never to begin again"
        )
    if found := list(_differences(values["identity"], config)):
        raise CheckpointError(
            f"{path}: expected a run with these settings and files, but {'; '.join(found)}: choose"
            " another --output, or --resume never to begin again"
        )
    random = values["parts"]["random"]
    if len(random) != group.world_size or ("cuda" in random[0]) != (group.device.type == "cuda"):
        kind = "cuda" if "cuda" in random[0] else "cpu"
        raise CheckpointError(
            f"{path}: expected the state of {group.world_size} process(es) on"
            f" {group.device.type}, got that of {len(random)} on {kind}"
        )
    for name, part in parts.items():
        part.load_state_dict(values["parts"][name])
    torch.set_rng_state(random[group.rank]["cpu"])
    if group.device.type == "cuda":
        torch.cuda.set_rng_state(random[group.rank]["cuda"], group.device)
    return TrainerState(**values["counters"])


class Scale(NamedTuple):
    """Mean and population deviation of predicted and opinion scores on the training part.

    They make a model's scores comparable with opinion scores: its losses leave them on any scale.
    """

    predicted_mean: float
    predicted_deviation: float
    opinion_mean: float
    opinion_deviation: float

    def opinion(self, predicted: float) -> float:
        """A predicted score on the scale of the opinion scores."""
        standardised = (predicted - self.predicted_mean) / self.predicted_deviation
        return self.opinion_mean + standardised * self.opinion_deviation


@dataclass(frozen=True, eq=False)  # tensors have no single truth value
class Checkpoint:
    """A trained model, with all it takes to build it again, to feed it and to read its scores."""

    script: str
    settings: dict[str, Any]  # plain values: which model, what builds it, how its inputs are cut
    epoch: int  # the chosen one
    state_dict: dict[str, Tensor]
    scale: Scale | None = None  # none before the training has ended, or if scores came to nothing
    features: Mapping[str, Any] | None = None  # how they were made, where the model reads features
    run: str | None = None  # digest of all that decides the result of the run that wrote it


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    values = {"format": _WEIGHTS_FORMAT, "version": _WEIGHTS_VERSION, **vars(checkpoint)}
    values["scale"] = None if checkpoint.scale is None else tuple(checkpoint.scale)
    values["features"] = None if checkpoint.features is None else dict(checkpoint.features)
    _save(path, values)


def load_checkpoint(path: Path) -> Checkpoint:
    """What `save_checkpoint` wrote, tensors on the CPU; no code of the file's is run."""
    values = _load(path)
    found = values.get("format") if isinstance(values, dict) else None
    if found != _WEIGHTS_FORMAT:
        got = _OTHER_FORMATS.get(str(found), "something else")
        raise CheckpointError(f"{path}: expected a checkpoint of a training script, got {got}")
    if values.get("version") != _WEIGHTS_VERSION:
        raise CheckpointError(
            f"{path}: expected version {_WEIGHTS_VERSION} of a training script's checkpoints, got"
            f" {values.get('version', 1)!r}, which does not say how the model is built and fed:"
            " train again"
        )
    # Older files lack what was not noted then.
    own = {field.name: values[field.name] for field in fields(Checkpoint) if field.name in values}
    own["scale"] = None if values["scale"] is None else Scale(*values["scale"])
    return Checkpoint(**own)


def is_checkpoint(path: Path) -> bool:
    """Whether the file is a training script's checkpoint, of whatever version."""
    try:
        values = _load(path, "meta")
    except CheckpointError:
        return False
    return isinstance(values, dict) and values.get("format") == _WEIGHTS_FORMAT


def _save(path: Path, values: dict[str, Any]) -> None:
    # To a file that Python opens: of one of its own, torch does not tell why it cannot be written.
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        torch.save(values, file)


def _load(path: Path, device: str = "cpu") -> Any:
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: expected a checkpoint, there is no file") from error
    except Exception as error:  # torch.load raises whatever the damage leads to
        # Torch's text is a page of advice, such as to run whatever code is in the file.
        why = "no file of tensors and plain values" if isinstance(error, UnpicklingError) else error
        raise CheckpointError(f"{path}: expected a checkpoint, cannot be read ({why})") from error


# These change how long a run takes, what it prints or where it writes, but not what it learns.
_WITHOUT_EFFECT = {
    *("also_test", "missing_files", "bad_files", "splits"),
    *("device", "compile", "workers", "threads"),
    *("output", "resume", "save_every", "dry_run", "evaluate", "part"),
    *("train_score", "landscape_points", "landscape_batches"),
    "annotations",  # labels are among the samples
}
# What these hold counts, not where it lies.
_BY_CONTENT = ("pretrained", "finetune_from")
# Runs from before these were there had their defaults.
_LATER = {"perturb_end": False}


def run_config(
    settings: Settings,
    split: int,
    samples: Mapping[str, Sequence[Sample]],
    files: Iterable[Path] = (),
) -> dict[str, Any]:
    """Plain values that are equal for two runs that must give the same result.

    They are the settings with an effect; of the samples, by what they are for, labels, sizes and
    times of change of the media files; digests of weights and of the files that the model's inputs
    are made of besides.
    """
    described: dict[str, Any] = {"split": split}
    for name, value in asdict(settings).items():
        if name in _LATER and value == _LATER[name]:
            continue
        if name not in _WITHOUT_EFFECT and name not in _BY_CONTENT:
            described[name] = str(value.resolve()) if isinstance(value, Path) else value
    contents = {name: getattr(settings, name) for name in _BY_CONTENT}
    for name, file in (contents | {file.name: file for file in files}).items():
        known = file is not None and file.is_file()
        described[f"content of {name}"] = sha256(file) if known else None
    for use, own in samples.items():
        root = settings.data_root
        labels = [(os.path.relpath(s.path, root), s.score, s.part) for s in own]
        described[f"labels of the samples that {use}"] = digest(labels)
        described[f"files of the samples that {use}"] = digest([file_state(s.path) for s in own])
    # As it will be read again: JSON knows no tuples.
    plain: dict[str, Any] = json.loads(json.dumps(described))
    return plain


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What differs between two runs, a phrase each."""
    for name in dict.fromkeys((*now, *before)):
        old, new = before.get(name), now.get(name)
        if old != new:
            told = " of " not in name
            yield f"{name} was {old!r} and is {new!r}" if told else f"the {name} changed"
