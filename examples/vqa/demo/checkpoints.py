"""Trained models on disk, with all that it takes to build them again and to feed them.

A checkpoint file is a dictionary of plain values and tensors, so that
`torch.load(..., weights_only=True)` reads it and loading a stranger's file runs no code of theirs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqa.io.files import replacing
from vqa.models import build_model
from vqa.sampling.tiny_fast_vqa import FragmentSampling
from vqa.training.perturbation import METHOD_NAMES, Method

_FORMAT = "torch-awp examples"
# Raise it when files of the older version can no longer be read.
_VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the file."""


@dataclass(frozen=True, eq=False)  # tensors have no single truth value
class Checkpoint:
    """A trained model and how it was trained."""

    model_name: str
    """What `build_model` knows it by."""
    model_settings: dict[str, int]
    """Its constructor's arguments."""
    weights: dict[str, Tensor]
    """Its `state_dict()`."""
    sampling: FragmentSampling
    """How the fragments that it has seen were cut."""
    rank_weight: float
    """Weight of the rank loss that it was trained with."""
    method: Method
    seed: int
    gamma: float
    """Relative size of the weight perturbation, 0 without."""


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; a process killed meanwhile leaves the old file or none.

    Tensors are written as they lie on the CPU, without what else shares their memory.
    """
    values = {field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)}
    values |= {"sampling": asdict(checkpoint.sampling), "gamma": float(checkpoint.gamma)}
    values["rank_weight"] = float(checkpoint.rank_weight)
    values["weights"] = {name: t.detach().cpu().clone() for name, t in checkpoint.weights.items()}
    with replacing(path) as unfinished:
        torch.save({"format": _FORMAT, "version": _VERSION, **values}, unfinished)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, its tensors on the CPU.

    Raises:
        CheckpointError: the file is missing, damaged, none of ours, of another version, or lacks
            something; names the file and what was expected.
    """
    values = _read(path)
    if not isinstance(values, dict) or values.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: expected a checkpoint of the examples, got something else")
    if values.get("version") != _VERSION:
        raise CheckpointError(
            f"{path}: expected version {_VERSION} of the format, got {values.get('version')!r}"
        )
    for name, kind in _KINDS.items():
        if not isinstance(values.get(name), kind):
            got = repr(values[name])[:80] if name in values else "none"
            raise CheckpointError(f"{path}: expected {name!r} of type {kind.__name__}, got {got}")
    if values["method"] not in METHOD_NAMES:
        known = ", ".join(METHOD_NAMES)
        raise CheckpointError(f"{path}: expected a method of {known}, got {values['method']!r}")
    try:
        sampling = FragmentSampling(**values["sampling"])
    except TypeError as error:
        raise CheckpointError(f"{path}: expected other settings in 'sampling' ({error})") from error
    return Checkpoint(**{**{name: values[name] for name in _KINDS}, "sampling": sampling})


def load_model(path: Path) -> tuple[nn.Module, Checkpoint]:
    """The trained model of a checkpoint, on the CPU in evaluation mode, and the checkpoint.

    Raises:
        CheckpointError: as `load_checkpoint`, or there is no such model, or its weights have other
            names or shapes.
    """
    checkpoint = load_checkpoint(path)
    try:
        model = build_model(checkpoint.model_name, **checkpoint.model_settings)
        model.load_state_dict(checkpoint.weights)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: expected a model {checkpoint.model_name} with settings"
            f" {checkpoint.model_settings} that fits the weights ({error})"
        ) from error
    return model.eval(), checkpoint


# Every field of `Checkpoint` by the type that it has in the file.
_KINDS: dict[str, type] = {
    "model_name": str,
    "model_settings": dict,
    "weights": dict,
    "sampling": dict,
    "rank_weight": float,
    "method": str,
    "seed": int,
    "gamma": float,
}


def _read(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: expected a checkpoint, there is no such file") from error
    except Exception as error:  # torch.load raises whatever the damage leads to
        raise CheckpointError(f"{path}: expected a checkpoint, cannot be read ({error})") from error
