"""The loss of a quality model near its weights, measured alike wherever it is reported."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torch_awp import landscape
from vqa.datasets import Sample
from vqa.training.distributed import ProcessGroup
from vqa.training.loader import Batch, batch_loader, draws_in_order
from vqa.training.settings import Settings
from vqa.training.task import Task

Loss = Callable[[nn.Module], Tensor]


@dataclass(frozen=True)
class LandscapeSettings:
    """Where the loss around the trained weights is evaluated."""

    radius: float = 0.02
    """Relative radius of the ball in which sharpness is the rise of the loss."""
    ascent_steps: int = 5
    """Steps by which the worst place in the ball is looked for."""
    reach: float = 0.5
    """The curve goes from minus to plus this multiple of a filter-normalised direction."""
    points: int = 11
    """Places on the curve; an odd number includes the trained weights themselves."""

    @property
    def positions(self) -> Tensor:
        """Multiples of the direction at which the curve is evaluated, float64 [points]."""
        return torch.linspace(-self.reach, self.reach, self.points, dtype=torch.float64)


def random_curve(
    model: nn.Module, loss: Loss, settings: LandscapeSettings, seed: int = 0
) -> Tensor:
    """Losses [points] along a direction that the seed decides."""
    generator = torch.Generator().manual_seed(seed)
    direction = landscape.filter_normalized_direction(model, generator)
    return landscape.loss_curve(model, loss, direction, settings.positions)


def random_surface(
    model: nn.Module, loss: Loss, settings: LandscapeSettings, seed: int = 0
) -> tuple[Tensor, float]:
    """Losses [points, points] over the plane of two directions, the first that of `random_curve`.

    With the cosine between the two, which normalising their filters leaves a little off zero.
    """
    generator = torch.Generator().manual_seed(seed)
    first = landscape.filter_normalized_direction(model, generator)
    second = landscape.filter_normalized_direction(model, generator, orthogonal_to=first)
    positions = settings.positions
    losses = landscape.loss_surface(model, loss, (first, second), positions, positions)
    return losses, landscape.cosine(first, second)


def landscape_of(
    model: nn.Module, task: Task, settings: Settings, samples: Sequence[Sample], group: ProcessGroup
) -> dict[str, object] | None:
    """Loss along a random direction around the tested weights and its worst rise, if asked for."""
    if settings.landscape_points == 0:
        return None
    where = LandscapeSettings(points=settings.landscape_points)
    some = samples[: settings.landscape_batches * settings.batch]
    batches = read_batches(task, settings, some, group)
    loss = mean_loss(task, batches)
    return {
        "positions": where.positions.tolist(),
        "losses": random_curve(model, loss, where).tolist(),
        "sharpness": landscape.sharpness(model, loss, where.radius, steps=where.ascent_steps),
        "radius": where.radius,
        "samples": sum(len(batch) for batch in batches),
    }


def read_batches(
    task: Task, settings: Settings, samples: Sequence[Sample], group: ProcessGroup
) -> list[Batch]:
    """Samples as they are tested, in their order, in batches as large as those of the training."""
    draws = draws_in_order(len(samples), settings.batch)
    loader = batch_loader(samples, task.read, settings, draws, group.device)
    return [batch.to(group.device) for batch in loader if len(batch) > 1]


def mean_loss(task: Task, batches: Sequence[Batch]) -> Loss:
    """The mean over batches of the training's loss in evaluation mode."""

    def loss(model: nn.Module) -> Tensor:
        model.eval()
        losses = [
            task.loss(task.scores(model, batch.inputs, "test").float(), batch.scores)
            for batch in batches
        ]
        return torch.stack(losses).mean()

    return loss
