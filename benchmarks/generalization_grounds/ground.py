"""What a ground offers: data that it splits by seed, a model, plain training, a score."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor, nn

from benchmarks.generalization_grounds.methods import Recipe

HeldOut = Literal["validation", "test"]
UNSEEN = "zero-shot on "
"""How further scores begin that are of data sets which a training has not seen."""


@dataclass(frozen=True)
class Outcome:
    """What one run gave: scores from 0 to 1 (higher is better) and its price."""

    score: float
    """On the part asked for."""
    train_score: float
    """On what the model was fitted to, labels as it saw them."""
    passes: float
    """Forward (and backward) passes of the training; one on half a batch is half a pass."""
    cpu_seconds: float
    """Processor time of the training, all of its steps, on one thread."""
    also: Mapping[str, float] = field(default_factory=dict)
    """Further scores of the same model, by what they are."""
    predicted: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Predictions behind such scores, where the items are the same for every seed."""


class Ground(Protocol):
    """A learning problem on which a model overfits."""

    metric: str
    grids: Mapping[str, tuple[float, ...]]
    seeds: int
    """How many seeds are reported unless asked otherwise."""
    tuning_seeds: int
    opinion: Mapping[str, Sequence[float]]
    """What `Outcome.predicted` predicts, by the same names; often nothing."""

    def describe(self) -> dict[str, object]:
        """Everything next to recipe, seed and part that decides an outcome."""
        ...

    def run(self, recipe: Recipe, seed: int, part: HeldOut) -> Outcome:
        """Train from scratch on this seed's share of the training data.

        Recipes with the same seed begin with the same weights, fit the same samples and see the
        same batches, so that outcomes can be compared in pairs. `"validation"` scores what the
        seed left out of the training data, `"test"` the test data, which is always the same.
        """
        ...


class Meter:
    """Passes and processor time of a training."""

    def __init__(self) -> None:
        self.passes = 0.0
        self.cpu_seconds = 0.0


@contextmanager
def metered(model: nn.Module, batch: int) -> Iterator[Meter]:
    """Count the forward passes of a model, each of which has its backward pass, and time them.

    Args:
        model: gives its outputs for a batch [B, ...].
        batch: samples of a whole pass.
    """
    meter = Meter()

    def count(_: nn.Module, inputs: tuple[Tensor, ...], __: object) -> None:
        meter.passes += len(inputs[0]) / batch

    hook = model.register_forward_hook(count)
    began = time.thread_time()  # what runs beside on a shared machine costs no time of this thread
    try:
        yield meter
    finally:
        meter.cpu_seconds = time.thread_time() - began
        hook.remove()
