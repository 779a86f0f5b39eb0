"""Small real videos with synthetic scores: the demo's model at half its width, on two frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.generalization_grounds.clips import (
    PlaneClips,
    fixed_views,
    load_clips,
    sample_fragments,
    shuffled_batches,
    to_planes,
)
from benchmarks.generalization_grounds.fitting import take_steps
from benchmarks.generalization_grounds.ground import HeldOut, Outcome
from benchmarks.generalization_grounds.methods import Recipe
from benchmarks.generalization_grounds.optimizers import build_optimizer
from vqa.datasets.tables import read_list
from vqa.metrics import agreement
from vqa.models import build_model
from vqa.sampling.tiny_fast_vqa import FragmentSampling
from vqa.synthetic.mini_ugc import MiniUgcSettings, build_mini_ugc
from vqa.training.losses import quality_loss
from vqa.training.optim import warm_up_cosine

_VERSION = 1
_VIEW_SEED, _VIEWS = 0, 4
_GRIDS: Mapping[str, tuple[float, ...]] = {
    "gamma": (0.005, 0.01, 0.02, 0.04),
    "update": (0.005, 0.01, 0.02, 0.04),
    "element": (0.01, 0.02, 0.04),
    "rwp": (0.02, 0.1, 0.3),
    "rho": (0.02, 0.05, 0.1, 0.2),
    "dropout": (0.1, 0.25, 0.5),
    "weight_decay": (0.3, 1.0, 3.0, 10.0),
    "length": (0.35, 0.5, 0.7),
}


@dataclass(frozen=True)
class TrainingSettings:
    """AdamW with a rising, then falling learning rate on FAST-VQA's loss."""

    steps: int = 160
    batch: int = 8
    learning_rate: float = 4e-3
    weight_decay: float = 0.05
    warm_up: float = 0.1
    """Part of the steps over which the learning rate rises."""
    rank_weight: float = 0.3


@dataclass(frozen=True)
class PhotographedClips:
    """Clips, and of which photograph each is, int64 [N]."""

    clips: PlaneClips
    photographs: Tensor

    def of(self, photographs: Tensor) -> PlaneClips:
        """The clips of some photographs."""
        which = torch.isin(self.photographs, photographs)
        return PlaneClips(self.clips.planes[which], self.clips.scores[which])


class MiniUgc:
    """SRCC of a FAST-VQA of some ten thousand parameters, fitted to nine of twelve photographs."""

    metric = "SRCC"
    grids = _GRIDS
    seeds = 10
    tuning_seeds = 3
    opinion: Mapping[str, Sequence[float]] = {}

    def __init__(
        self,
        folder: Path,
        data: MiniUgcSettings = MiniUgcSettings(),  # noqa: B008
        training: TrainingSettings = TrainingSettings(),
        left_out: int = 3,
        width: int = 8,
    ) -> None:
        build_mini_ugc(folder, data)
        self._data, self._training, self._left_out, self._width = data, training, left_out, width
        self._sampling = FragmentSampling(frames=2)
        self._train, self._test = (load_part(folder / f"{part}.txt") for part in ("train", "test"))

    def describe(self) -> dict[str, object]:
        """Settings and the version of the code."""
        return {
            "ground": "mini-ugc",
            "version": _VERSION,
            "left_out": self._left_out,
            "width": self._width,
            "data": asdict(self._data),
            "sampling": asdict(self._sampling),
            "training": asdict(self._training),
        }

    def run(self, recipe: Recipe, seed: int, part: HeldOut) -> Outcome:
        """See `Ground.run`; whole photographs are left out, so that no content is in both."""
        fitted, left_out = self._split(seed)
        held = left_out if part == "validation" else self._test.clips
        torch.manual_seed(seed)
        model = build_model("tiny_fast_vqa", planes=fitted.planes.shape[1], width=self._width)
        add_dropout(model, recipe.dropout)
        training, steps = self._training, round(recipe.length * self._training.steps)
        optimizer = build_optimizer(
            model, recipe, training.learning_rate, training.weight_decay, seed, steps
        )
        rise = max(1, round(training.warm_up * steps))
        meter = take_steps(
            model,
            optimizer,
            self._batches(fitted, steps, torch.Generator().manual_seed(seed)),
            partial(quality_loss, rank_weight=training.rank_weight),
            training.batch,
            lambda step: warm_up_cosine(step, steps, rise),
        )
        return Outcome(
            self._srcc(model, held), self._srcc(model, fitted), meter.passes, meter.cpu_seconds
        )

    def _batches(
        self, clips: PlaneClips, steps: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        order = shuffled_batches(len(clips.scores), self._training.batch, generator)
        for which in islice(order, steps):
            yield sample_fragments(clips, which, self._sampling, generator), clips.scores[which]

    def _split(self, seed: int) -> tuple[PlaneClips, PlaneClips]:
        generator = torch.Generator().manual_seed(seed)
        photographs = torch.unique(self._train.photographs)
        order = photographs[torch.randperm(len(photographs), generator=generator)]
        fitted, left_out = order[self._left_out :], order[: self._left_out]
        return self._train.of(fitted), self._train.of(left_out)

    @torch.no_grad()
    def _srcc(self, model: nn.Module, clips: PlaneClips) -> float:
        views = fixed_views(clips, self._sampling, _VIEWS, _VIEW_SEED)
        return agreement(
            torch.stack([model(view) for view in views]).mean(dim=0), clips.scores
        ).srcc


def load_part(label_list: Path) -> PhotographedClips:
    """A part of mini-UGC; clips are named `<part>/<photograph>_<number>.mp4`."""
    files = [Path(cells[0]) for cells in read_list(label_list).rows.values()]
    names = [file.stem.rsplit("_", 1)[0] for file in files]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    photographs = torch.tensor([numbers[name] for name in names])
    return PhotographedClips(to_planes(load_clips(label_list)), photographs)


def add_dropout(model: nn.Module, probability: float) -> None:
    """Put dropout before both layers of the head of a tiny_fast_vqa, as FAST-VQA's head has it."""
    hidden, activation, last = model.get_submodule("head").children()
    dropout = nn.Dropout(probability)
    model.set_submodule("head", nn.Sequential(dropout, hidden, activation, dropout, last))
