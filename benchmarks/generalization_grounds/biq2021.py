"""Real opinion scores: natural-scene statistics of BIQ2021 photographs and a small network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.generalization_grounds.fitting import PlainTraining, build_mlp, fit
from benchmarks.generalization_grounds.ground import HeldOut, Outcome
from benchmarks.generalization_grounds.methods import Recipe
from vqa.metrics import agreement
from vqa.training.losses import quality_loss

TABLE = Path(__file__).resolve().parents[1] / "data" / "biq2021.npz"

# Raise it when the same settings would give other outcomes.
_VERSION = 1
_GRIDS: Mapping[str, tuple[float, ...]] = {
    "gamma": (0.005, 0.01, 0.02, 0.04, 0.08),
    "update": (0.005, 0.01, 0.02, 0.04, 0.08, 0.16),
    "element": (0.01, 0.02, 0.04, 0.08, 0.16),
    "end": (0.01, 0.02, 0.04, 0.08, 0.16, 0.32),
    "rwp": (0.1, 0.3, 0.6, 1.0, 1.5, 2.5),
    "rho": (0.05, 0.1, 0.2, 0.5, 1.0),
    "dropout": (0.2, 0.35, 0.5, 0.65, 0.8),
    "weight_decay": (0.3, 1.0, 3.0, 10.0),
    "climb_share": (0.25,),
    "length": (0.1, 0.2, 0.3, 0.5, 0.7),
}

# The learning rate is the best of 0.01, 0.03, 0.1, 0.3, 1, 3 by validation of plain training.
SGD = PlainTraining(epochs=20, learning_rate=3.0, weight_decay=0.0, base="sgd")
SGD_GRIDS = {**_GRIDS, "weight_decay": (1e-4, 1e-3, 3e-3, 1e-2, 3e-2)}


@dataclass(frozen=True)
class LabelledTable:
    """Features float32 [N, F], scores float32 [N], which rows are test, bool [N]."""

    features: Tensor
    scores: Tensor
    is_test: Tensor


def load_table(path: Path = TABLE) -> LabelledTable:
    """The table that `benchmarks/biq2021_features.py` writes.

    Raises:
        OSError: there is no such file.
        KeyError: the file lacks a column.
    """
    with np.load(path) as table:
        features = torch.from_numpy(table["features"].astype(np.float32))
        scores, is_test = torch.from_numpy(table["scores"]), torch.from_numpy(table["is_test"])
    return LabelledTable(features, scores, is_test)


class Biq2021:
    """SRCC of an MLP of 97,537 parameters with 120 inputs, fitted to 700 of 900 photographs."""

    metric = "SRCC"
    seeds = 10
    tuning_seeds = 4
    opinion: Mapping[str, Sequence[float]] = {}

    def __init__(
        self,
        table: LabelledTable,
        plain: PlainTraining = PlainTraining(epochs=20),  # noqa: B008
        fitted: int = 700,
        width: int = 256,
        grids: Mapping[str, tuple[float, ...]] = _GRIDS,
    ) -> None:
        self.grids = grids
        self._table, self._plain, self._fitted, self._width = table, plain, fitted, width

    def describe(self) -> dict[str, object]:
        """Settings and the version of the code."""
        return {
            "ground": "biq2021",
            "version": _VERSION,
            "fitted": self._fitted,
            "width": self._width,
            "plain": asdict(self._plain),
        }

    def run(self, recipe: Recipe, seed: int, part: HeldOut) -> Outcome:
        """See `Ground.run`; features are standardised by the samples that are fitted."""
        generator = torch.Generator().manual_seed(seed)
        train = torch.nonzero(~self._table.is_test)[:, 0]
        order = train[torch.randperm(len(train), generator=generator)]
        fitted, left_out = order[: self._fitted], order[self._fitted :]
        held = left_out if part == "validation" else torch.nonzero(self._table.is_test)[:, 0]
        deviation, mean = torch.std_mean(self._table.features[fitted], dim=0)
        inputs, scores = (self._table.features - mean) / deviation, self._table.scores
        torch.manual_seed(seed)
        model = build_mlp(inputs.shape[1], self._width, 1, recipe.dropout)
        meter = fit(model, inputs[fitted], scores[fitted], _loss, recipe, self._plain, seed)
        return Outcome(
            _srcc(model, inputs[held], scores[held]),
            _srcc(model, inputs[fitted], scores[fitted]),
            meter.passes,
            meter.cpu_seconds,
        )


def _loss(predicted: Tensor, scores: Tensor) -> Tensor:
    return quality_loss(predicted[:, 0], scores)


@torch.no_grad()
def _srcc(model: nn.Module, inputs: Tensor, scores: Tensor) -> float:
    return agreement(model(inputs)[:, 0], scores).srcc
