"""What decides the result of a run, which is gone on with only where all of it is the same."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vqa.datasets import Sample
from vqa.io.files import digest, file_state, sha256
from vqa.training.settings import Settings

# These change how long a run takes, what it prints or where it writes, but not what it learns.
_WITHOUT_EFFECT = frozenset(
    {
        *("also_test", "missing_files", "bad_files", "splits"),
        *("device", "compile", "workers", "threads"),
        *("output", "resume", "save_every", "dry_run", "evaluate", "part"),
        *("train_score", "landscape_points", "landscape_batches"),
    }
)
# What these hold counts, not where it lies: labels are among the samples.
_BY_CONTENT = ("pretrained", "finetune_from")
_ELSEWHERE = frozenset({"annotations", *_BY_CONTENT})
# Runs from before these were there had their defaults.
_LATER = {"perturb_end": False}


def identity(
    settings: Settings,
    split: int,
    samples: Mapping[str, Sequence[Sample]],
    files: Iterable[Path] = (),
) -> dict[str, Any]:
    """Equal for two runs that must give the same result.

    Args:
        settings: of the script.
        split: number of the split.
        samples: those that train and those that choose the epoch, by what they are for.
        files: what else the model's inputs are made of.

    Returns:
        Plain values: settings with an effect, labels, sizes and times of change of the media files,
        digests of weights and of the other files.
    """
    described: dict[str, Any] = {"split": split}
    for name, value in asdict(settings).items():
        if name in _LATER and value == _LATER[name]:
            continue
        if name not in _WITHOUT_EFFECT | _ELSEWHERE:
            described[name] = str(value.resolve()) if isinstance(value, Path) else value
    for name in _BY_CONTENT:
        file = getattr(settings, name)
        described[f"content of {name}"] = None if file is None else _digest_of(file)
    for file in files:
        described[f"content of {file.name}"] = _digest_of(file)
    for use, own in samples.items():
        root = settings.data_root
        labels = [(os.path.relpath(s.path, root), s.score, s.part) for s in own]
        described[f"labels of the samples that {use}"] = digest(labels)
        described[f"files of the samples that {use}"] = digest([file_state(s.path) for s in own])
    # As it will be read again: JSON knows no tuples.
    plain: dict[str, Any] = json.loads(json.dumps(described))
    return plain


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What differs between two runs, a phrase each."""
    for name in dict.fromkeys((*now, *before)):
        old, new = before.get(name), now.get(name)
        if old != new:
            told = " of " not in name
            yield f"{name} was {old!r} and is {new!r}" if told else f"the {name} changed"


def _digest_of(file: Path) -> str | None:
    return sha256(file) if file.is_file() else None
