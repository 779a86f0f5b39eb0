"""Real handwritten digits, few of them and a fifth of them with a wrong label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from torch import Tensor, nn

from benchmarks.generalization_grounds.fitting import PlainTraining, build_mlp, fit
from benchmarks.generalization_grounds.ground import HeldOut, Outcome
from benchmarks.generalization_grounds.methods import Recipe

_VERSION = 1
_CLASSES = 10
_POOL = 1000
_SPLIT_SEED = 0
_GRIDS: Mapping[str, tuple[float, ...]] = {
    "gamma": (0.01, 0.02, 0.04, 0.08),
    "update": (0.01, 0.02, 0.04, 0.08),
    "element": (0.02, 0.04, 0.08, 0.16, 0.32),
    "end": (0.01, 0.02, 0.04, 0.08, 0.16, 0.32),
    "rwp": (0.3, 0.6, 1.0, 1.5, 2.5),
    "rho": (0.1, 0.2, 0.5, 1.0),
    "dropout": (0.2, 0.35, 0.5, 0.65, 0.8),
    "weight_decay": (0.3, 1.0, 3.0, 10.0),
    "climb_share": (0.25,),
    "length": (0.05, 0.1, 0.2, 0.3, 0.5),
}
# The learning rate is the best of 0.01, 0.03, 0.1, 0.3, 1, 3 by validation of plain training.
SGD = PlainTraining(epochs=40, learning_rate=0.01, weight_decay=0.0, base="sgd")
SGD_GRIDS = {**_GRIDS, "weight_decay": (1e-4, 1e-3, 3e-3, 1e-2, 3e-2)}


class Digits:
    """Accuracy of an MLP fitted to 300 images of 8 x 8 pixels.

    The last 797 of scikit-learn's 1,797 digits in a fixed random order are the test data, their
    labels are right. A seed draws wrong labels for a fifth of the others, 300 images to fit and
    leaves 700 (noisy, too) for validation.
    """

    metric = "accuracy"
    seeds = 10
    tuning_seeds = 4
    opinion: Mapping[str, Sequence[float]] = {}

    def __init__(
        self,
        plain: PlainTraining = PlainTraining(epochs=40),  # noqa: B008
        fitted: int = 300,
        noise: float = 0.2,
        width: int = 256,
        grids: Mapping[str, tuple[float, ...]] = _GRIDS,
    ) -> None:
        self.grids = grids
        self._plain, self._fitted, self._noise, self._width = plain, fitted, noise, width
        digits = load_digits()
        order = torch.randperm(
            len(digits.target), generator=torch.Generator().manual_seed(_SPLIT_SEED)
        )
        self._images = torch.from_numpy(digits.images).float()[order].flatten(1) / 16
        self._labels = torch.from_numpy(digits.target).long()[order]

    def describe(self) -> dict[str, object]:
        """Settings and the version of the code."""
        return {
            "ground": "digits",
            "version": _VERSION,
            "fitted": self._fitted,
            "noise": self._noise,
            "width": self._width,
            "plain": asdict(self._plain),
        }

    def run(self, recipe: Recipe, seed: int, part: HeldOut) -> Outcome:
        """See `Ground.run`."""
        generator = torch.Generator().manual_seed(seed)
        labels = self._labels.clone()
        labels[:_POOL] = with_wrong_labels(labels[:_POOL], self._noise, generator)
        order = torch.randperm(_POOL, generator=generator)
        fitted, left_out = order[: self._fitted], order[self._fitted :]
        held = left_out if part == "validation" else torch.arange(_POOL, len(labels))
        torch.manual_seed(seed)
        model = build_mlp(self._images.shape[1], self._width, _CLASSES, recipe.dropout)
        loss = nn.functional.cross_entropy
        meter = fit(model, self._images[fitted], labels[fitted], loss, recipe, self._plain, seed)
        return Outcome(
            _accuracy(model, self._images[held], labels[held]),
            _accuracy(model, self._images[fitted], labels[fitted]),
            meter.passes,
            meter.cpu_seconds,
        )


def with_wrong_labels(labels: Tensor, part: float, generator: torch.Generator) -> Tensor:
    """Labels [N], of which `part` are replaced by one of the other nine classes."""
    wrong = torch.randperm(len(labels), generator=generator)[: round(part * len(labels))]
    shift = torch.randint(1, _CLASSES, (len(wrong),), generator=generator)
    noisy = labels.clone()
    noisy[wrong] = (labels[wrong] + shift) % _CLASSES
    return noisy


@torch.no_grad()
def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return float((model(images).argmax(dim=1) == labels).float().mean())
