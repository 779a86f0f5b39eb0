"""A training run on disk: all it needs to go on as if it had never stopped."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from vqa.datasets import Sample
from vqa.io.files import replacing
from vqa.training.settings import Settings

_FORMAT = "torch-awp training run"
# Raise it when files of the older version can no longer be gone on from.
_VERSION = 1

# These change how long a run takes, what it prints or where it writes, but not what it learns.
_WITHOUT_EFFECT = frozenset(
    {
        *("data_root", "annotations", "also_test", "missing_files", "bad_files", "splits"),
        *("device", "compile", "workers", "threads"),
        *("output", "resume", "save_every", "dry_run", "evaluate"),
        *("train_score", "landscape_points", "landscape_batches"),
    }
)


class RunStateError(ValueError):
    """The checkpoint of an interrupted run cannot be used; the message names the file."""


@dataclass
class Counters:
    """How far a run has come."""

    epoch: int = 0
    """Finished epochs."""
    batch: int = 0
    """Batches of the current epoch that are done."""
    step: int = 0
    """Optimizer steps so far."""
    best: float = -math.inf
    """SRCC + PLCC of the chosen epoch on the part that chooses."""
    best_epoch: int = 0
    seconds: float = 0.0
    """Training time so far, over all sessions."""
    losses: list[float] = field(default_factory=list)
    """Of the current epoch's steps."""
    step_seconds: list[float] = field(default_factory=list)
    """Of every step, as `Step.seconds`."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One row per finished epoch."""
    bad_files: list[str] = field(default_factory=list)


def fingerprint(settings: Settings, split: int, samples: Sequence[Sample]) -> str:
    """Equal for two runs that must give the same result: same settings, same labels."""
    values = {k: v for k, v in asdict(settings).items() if k not in _WITHOUT_EFFECT}
    labels = [(sample.path.name, sample.score, sample.part) for sample in samples]
    described = json.dumps([split, values, labels], sort_keys=True, default=str)
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def save_state(path: Path, fingerprint: str, counters: Counters, parts: Mapping[str, Any]) -> None:
    """Write a run's state; a process killed meanwhile leaves the old file or none.

    Args:
        path: where to.
        fingerprint: of the run's settings.
        counters: how far it has come.
        parts: state dictionaries and generator states by name.
    """
    values = {"format": _FORMAT, "version": _VERSION, "fingerprint": fingerprint}
    with replacing(path) as unfinished:
        torch.save({**values, "counters": asdict(counters), "parts": dict(parts)}, unfinished)


def load_state(path: Path, fingerprint: str) -> tuple[Counters, dict[str, Any]]:
    """What `save_state` wrote, tensors on the CPU.

    Raises:
        RunStateError: the file is damaged or none of ours, or the run had other settings.
    """
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the damage leads to
        raise RunStateError(f"{path}: expected a checkpoint, cannot be read ({error})") from error
    if not isinstance(values, dict) or values.get("format") != _FORMAT:
        raise RunStateError(f"{path}: expected the checkpoint of a run, got something else")
    if values.get("version") != _VERSION:
        raise RunStateError(f"{path}: expected version {_VERSION}, got {values.get('version')!r}")
    if values["fingerprint"] != fingerprint:
        raise RunStateError(
            f"{path}: expected a run with these settings, this one had others: choose another"
            " --output, or --resume never to begin again"
        )
    return Counters(**values["counters"]), values["parts"]
