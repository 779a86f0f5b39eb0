"""Real opinion scores of videos: trained on one data set, tested there and on two others."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge  # type: ignore[import-untyped]
from sklearn.preprocessing import QuantileTransformer  # type: ignore[import-untyped]
from sklearn.svm import SVR  # type: ignore[import-untyped]
from torch import Tensor, nn

from benchmarks.generalization_grounds.fitting import PlainTraining, fit
from benchmarks.generalization_grounds.ground import UNSEEN, HeldOut, Outcome
from benchmarks.generalization_grounds.methods import Recipe
from benchmarks.generalization_grounds.videval_tables import VideoSet, VideoTable
from vqa.metrics import Agreement, agreement
from vqa.training.losses import quality_loss

# Raise it when the same settings would give other outcomes.
_VERSION = 1
_TRAIN_SHARE = 0.8
# Where normal scores of a thousand ranks end; what lies outside of the training part goes no
# farther.
_FARTHEST = 3.0
_GRIDS: Mapping[str, tuple[float, ...]] = {
    "gamma": (0.005, 0.01, 0.02, 0.04, 0.08),
    "update": (0.005, 0.01, 0.02, 0.04, 0.08, 0.16),
    "element": (0.01, 0.02, 0.04, 0.08, 0.16),
    "rwp": (0.1, 0.3, 0.6, 1.0, 2.0),
    "rho": (0.05, 0.1, 0.2, 0.5, 1.0),
    "dropout": (0.1, 0.2, 0.35, 0.5, 0.65),
    "weight_decay": (1.0, 3.0, 8.0, 20.0),
    "length": (0.1, 0.2, 0.3, 0.5, 0.7),
    "climb_share": (0.25,),
    "ridge": (1.0, 10.0, 100.0, 1000.0),
    "svr": (0.1, 1.0, 10.0, 100.0),
}

Predictor = Callable[[NDArray[np.float32]], NDArray[np.float64]]


@dataclass(frozen=True)
class _Data:
    """Features as the network takes them, float32 [N, F], and scores float32 [N]."""

    features: NDArray[np.float32]
    scores: NDArray[np.float32]

    def some(self, which: NDArray[np.int64]) -> _Data:
        return _Data(self.features[which], self.scores[which])


class Videval:
    """SRCC of an MLP of 25,345 parameters on 60 features of VIDEVAL.

    A seed draws four fifths of the source to train on and the rest to test on. The same model is
    scored on the whole of both other data sets, which it has never seen, and on a fifth of each
    after fine-tuning by the same recipe on the other four fifths.
    """

    metric = "SRCC"
    grids = _GRIDS
    seeds = 10
    tuning_seeds = 4

    def __init__(
        self,
        source: VideoSet,
        tables: Mapping[VideoSet, VideoTable],
        plain: PlainTraining = PlainTraining(epochs=20, schedule="cosine"),  # noqa: B008
        width: int = 128,
    ) -> None:
        self._source, self._tables, self._plain, self._width = source, tables, plain, width
        # Of a network that knows something: half as long at a quarter of the learning rate.
        self._finetuning = replace(
            plain, epochs=max(1, plain.epochs // 2), learning_rate=plain.learning_rate / 4
        )
        self._targets = [name for name in tables if name != source]
        self.opinion: Mapping[str, Sequence[float]] = {
            _zero_shot(name): tables[name].scores.tolist() for name in self._targets
        }

    def describe(self) -> dict[str, object]:
        """Settings, a digest of the data, and the version of the code."""
        digest = hashlib.sha256()
        for table in self._tables.values():
            digest.update(table.features.tobytes() + table.scores.tobytes())
        return {
            "ground": self._source,
            "version": _VERSION,
            "rows": {name: len(table.scores) for name, table in self._tables.items()},
            "content": digest.hexdigest()[:16],
            "train_share": _TRAIN_SHARE,
            "width": self._width,
            "plain": asdict(self._plain),
            "finetuning": asdict(self._finetuning),
        }

    def run(self, recipe: Recipe, seed: int, part: HeldOut) -> Outcome:
        """See `Ground.run`; validation and what is fitted for it are parts of the training part."""
        table = self._tables[self._source]
        fitted, held = _split(np.arange(len(table.scores)), seed)
        if part == "validation":
            fitted, held = _split(fitted, seed)
        scale = _normal_scores(table.features[fitted])
        source = _Data(scale(table.features), table.scores)
        began = time.thread_time()
        predict, model, passes = self._learn(recipe, source.some(fitted), seed)
        seconds = time.thread_time() - began
        train, test = (_agreement(predict, source.some(which)) for which in (fitted, held))
        outcome = Outcome(test.srcc, train.srcc, passes, seconds, {"test PLCC": test.plcc})
        return (
            outcome
            if part == "validation"
            else self._transfer(outcome, recipe, seed, scale, predict, model)
        )

    def _learn(
        self, recipe: Recipe, data: _Data, seed: int
    ) -> tuple[Predictor, nn.Module | None, float]:
        """What a recipe learns, the network behind it if it is one, and its passes."""
        if recipe.learner != "network":
            return _fit_reference(recipe, data), None, 0.0
        torch.manual_seed(seed)
        model = _build(data.features.shape[1], self._width, recipe.dropout)
        passes = _train(model, data, recipe, self._plain, seed)
        return partial(_predict, model), model, passes

    def _transfer(
        self,
        outcome: Outcome,
        recipe: Recipe,
        seed: int,
        scale: Callable[[NDArray[np.float64]], NDArray[np.float32]],
        predict: Predictor,
        model: nn.Module | None,
    ) -> Outcome:
        """The same outcome with scores on the other data sets."""
        also, predicted = dict(outcome.also), {}
        for name in self._targets:
            target = _Data(scale(self._tables[name].features), self._tables[name].scores)
            predicted[_zero_shot(name)] = predict(target.features).tolist()
            _note(also, _zero_shot(name), _agreement(predict, target))
            fitted, held = _split(np.arange(len(target.scores)), seed)
            if model is None:
                tuned = _fit_reference(recipe, target.some(fitted))
            else:
                own = copy.deepcopy(model)
                _train(own, target.some(fitted), recipe, self._finetuning, seed)
                tuned = partial(_predict, own)
            _note(also, f"fine-tuned on {name}", _agreement(tuned, target.some(held)))
        return replace(outcome, also=also, predicted=predicted)


def _split(rows: NDArray[np.int64], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows in a random order: four fifths of them, and the rest."""
    order = np.random.default_rng(seed).permutation(rows)
    count = round(_TRAIN_SHARE * len(order))
    return order[:count], order[count:]


def _normal_scores(
    training: NDArray[np.float64],
) -> Callable[[NDArray[np.float64]], NDArray[np.float32]]:
    """Features by their ranks in the training part, as normal scores; missing ones amidst."""
    transformer = QuantileTransformer(
        n_quantiles=min(1000, len(training)), output_distribution="normal", subsample=None
    ).fit(training)

    def scale(features: NDArray[np.float64]) -> NDArray[np.float32]:
        normal = np.nan_to_num(transformer.transform(features), nan=0.0)
        scaled: NDArray[np.float32] = np.clip(normal, -_FARTHEST, _FARTHEST).astype(np.float32)
        return scaled

    return scale


def _build(inputs: int, width: int, dropout: float) -> nn.Module:
    """Scores [B, 1] of features [B, F]: two hidden layers with LayerNorm, GELU and dropout."""
    layers: list[nn.Module] = []
    for size in (inputs, width):
        layers += [nn.Linear(size, width), nn.LayerNorm(width), nn.GELU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(width, 1))


def _train(model: nn.Module, data: _Data, recipe: Recipe, plain: PlainTraining, seed: int) -> float:
    """Train in place; the passes it took."""
    inputs, scores = torch.from_numpy(data.features), torch.from_numpy(data.scores)
    return fit(model, inputs, scores, _loss, recipe, plain, seed).passes


def _fit_reference(recipe: Recipe, data: _Data) -> Predictor:
    """What people in the field fit to features; scores are standardised for it."""
    scores = (data.scores - data.scores.mean()) / data.scores.std()
    model = Ridge(alpha=recipe.magnitude) if recipe.learner == "ridge" else SVR(C=recipe.magnitude)
    predict: Predictor = model.fit(data.features, scores).predict
    return predict


def _loss(predicted: Tensor, scores: Tensor) -> Tensor:
    return quality_loss(predicted[:, 0], scores)


@torch.no_grad()
def _predict(model: nn.Module, features: NDArray[np.float32]) -> NDArray[np.float64]:
    scores: NDArray[np.float64] = model(torch.from_numpy(features))[:, 0].double().numpy()
    return scores


def _agreement(predict: Predictor, data: _Data) -> Agreement:
    return agreement(predict(data.features), data.scores)


def _zero_shot(name: VideoSet) -> str:
    return f"{UNSEEN}{name}"


def _note(scores: dict[str, float], what: str, found: Agreement) -> None:
    scores[what], scores[f"{what} PLCC"] = found.srcc, found.plcc
