"""The training loss of a model on some fixed batches, for its landscape."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vqa.datasets import Sample
from vqa.training.landscape import (
    LandscapeSettings,
    Loss,
    curve_positions,
    random_curve,
    worst_rise,
)
from vqa.training.loader import Batch, LabelledFiles, evaluation_loader
from vqa.training.run import TrainingRun
from vqa.training.sampler import every_sample
from vqa.training.task import Recipe


def landscape_of(run: TrainingRun, samples: Sequence[Sample]) -> dict[str, object] | None:
    """The loss along a random direction around the tested weights, and its worst rise.

    Every process computes the same; None where the settings ask for no points.
    """
    settings = run.settings
    if settings.landscape_points == 0:
        return None
    where = LandscapeSettings(points=settings.landscape_points)
    some = samples[: settings.landscape_batches * settings.batch]
    files = LabelledFiles(some, run.recipe.read, settings.bad_files == "skip")
    loader = evaluation_loader(
        files, every_sample(len(some)), settings.batch, settings.workers, pin_memory=False
    )
    batches = [batch.to(run.place.device) for batch in loader if len(batch) > 1]
    loss = _mean_loss(run.recipe, batches)
    return {
        "positions": curve_positions(where).tolist(),
        "losses": random_curve(run.tested_model, loss, where).tolist(),
        "sharpness": worst_rise(run.tested_model, loss, where),
        "radius": where.radius,
        "samples": sum(len(batch) for batch in batches),
    }


def _mean_loss(recipe: Recipe, batches: Sequence[Batch]) -> Loss:
    def loss(model: nn.Module) -> Tensor:
        model.eval()
        losses = [
            recipe.loss(recipe.scores(model, batch.inputs, "test").float(), batch.scores)
            for batch in batches
        ]
        return torch.stack(losses).mean()

    return loss
