"""What makes one of the models itself: all that the shared training code has to be told of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vqa.training.loader import Inputs, Read

# `first` and `later` are the passes of a training step, wherever the weights are in them.
Phase = Literal["first", "later", "test"]


@dataclass(frozen=True)
class ScoringTask:
    """One model and how it is fed: all that scoring takes."""

    script: str
    """Name of the script, and of the folder of its runs."""
    build: Callable[[], nn.Module]
    """The model; drawn from torch's global generator, published weights loaded."""
    read: Read
    """One file as the model takes it: a random view with a generator, the test view without."""
    scores: Callable[[nn.Module, Inputs, Phase], Tensor]
    """Predicted scores [B] of a batch."""
    clips: str = field(default="", kw_only=True)
    """Name of the part of the model whose output has a row for every clip or frame of a file; the
    model itself if empty."""


@dataclass(frozen=True)
class Task(ScoringTask):
    """The same with its loss and its optimizer."""

    loss: Callable[[Tensor, Tensor], Tensor]
    """From predicted and opinion scores, [B] each."""
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    """The base optimizer, built with names, at its full learning rates."""
    multiplier: Callable[[int, int], float]
    """Factor of the learning rates from the step's number and the steps per epoch."""
    prepare: Callable[[Sequence[Path]], None] = lambda files: None
    """Make, of all files, what reading them takes; called once, by the first process."""
    files: tuple[Path, ...] = ()
    """What else the model's inputs are made of, beside the samples' files."""
    features: Callable[[], Mapping[str, Any] | None] = lambda: None
    """How the features that stand for a file were made, as plain values; None where the model reads
    the files themselves."""
    head: str = "head"
    """Name of the part of the model that alone learns in `linear_epochs`."""
    end: tuple[str, ...] = ("head",)
    """Names of the parts that alone are perturbed with `perturb_end`: last stage and head."""
    freeze_statistics: bool = True
    """Whether BatchNorm's running statistics stand still in later passes."""
    choice_batch: int = 1
    """Files scored at a time where the scores only choose an epoch. All other scores are of one
    file at a time: rounding then does not depend on its neighbours."""
