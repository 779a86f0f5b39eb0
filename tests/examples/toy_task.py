"""A task small enough to train in a second: noisy vectors whose first entry is the score."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from vqa.datasets import Sample
from vqa.training.loader import Inputs
from vqa.training.losses import quality_loss
from vqa.training.optim import adamw_for_backbone_and_head, cosine_multiplier
from vqa.training.settings import Settings
from vqa.training.task import Phase, Task

SETTINGS = Settings(
    epochs=3,
    warm_up_epochs=0.5,
    schedule="released",
    batch=4,
    learning_rate=0.02,
    ema=0.9,
    workers=0,
    device="cpu",
    perturb="awp",
    gamma=0.01,
)


class Toy(nn.Module):
    """A backbone with BatchNorm and dropout, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.GELU())
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 1))

    def forward(self, vectors: Tensor) -> Tensor:
        scores: Tensor = self.head(self.backbone(vectors))
        return scores.flatten()


def toy_samples(count: int, bad: tuple[int, ...] = ()) -> tuple[Sample, ...]:
    """Samples whose file names hold all that is read of them."""
    return tuple(
        Sample(Path(f"{'bad' if n in bad else 'clip'}-{n}-{(7 * n) % count}"), (7 * n) % count)
        for n in range(count)
    )


def read_toy(path: Path, generator: torch.Generator | None) -> Inputs:
    kind, number, score = path.name.split("-")
    if kind == "bad":
        raise ValueError(f"{path}: cannot be decoded")
    vector = torch.randn(6, generator=torch.Generator().manual_seed(int(number)))
    vector[0] = float(score) / 10
    noise = 0.0 if generator is None else 0.1 * torch.randn(6, generator=generator)
    return (vector + noise,)


def score_toy(model: nn.Module, inputs: Inputs, phase: Phase) -> Tensor:
    scores: Tensor = model(*inputs)
    return scores


def toy_task(settings: Settings = SETTINGS) -> Task:
    return Task(
        script="toy",
        build=Toy,
        read=read_toy,
        scores=score_toy,
        loss=quality_loss,
        optimizer=partial(adamw_for_backbone_and_head, settings=settings),
        multiplier=partial(cosine_multiplier, settings=settings),
        choice_batch=3,
    )


def with_settings(**changes: object) -> Settings:
    return replace(SETTINGS, **changes)
