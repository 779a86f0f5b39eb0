"""What a training begins with: base optimizers as the papers build them, schedules, weights.

Schedules are multipliers of the learning rate, of the published models and without their quirks:
functions of the number of the step (or epoch) that is about to be made, from 0, for
`torch.optim.lr_scheduler.LambdaLR`.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vqa.models import LoadReport, PublishedWeightsError, load_published
from vqa.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    is_checkpoint,
    load_checkpoint,
)
from vqa.training.settings import Settings


def split_off_head(
    model: nn.Module, head: str
) -> tuple[list[tuple[str, nn.Parameter]], list[tuple[str, nn.Parameter]]]:
    """Named parameters of everything but the module called `head`, and of that module.

    Raises:
        ValueError: the model has no parameters under that name.
    """
    backbone: list[tuple[str, nn.Parameter]] = []
    own: list[tuple[str, nn.Parameter]] = []
    for name, parameter in model.named_parameters():
        (own if name.startswith(f"{head}.") else backbone).append((name, parameter))
    if not own:
        raise ValueError(f"head: expected a part of {type(model).__name__}, got {head!r}")
    return backbone, own


def adamw_for_backbone_and_head(
    model: nn.Module, settings: Settings, head: str = "head"
) -> torch.optim.Optimizer:
    """AdamW with a learning rate for the head and `backbone_factor` times it for all else.

    Weight decay reaches every tensor, norms, biases and position tables too, as published.
    """
    backbone, own = split_off_head(model, head)
    rate = settings.learning_rate
    return torch.optim.AdamW(
        [{"params": backbone, "lr": rate * settings.backbone_factor}, {"params": own, "lr": rate}],
        weight_decay=settings.weight_decay,
    )


def cosine_multiplier(step: int, steps_per_epoch: int, settings: Settings) -> float:
    """Factor of the learning rates of FAST-VQA and of SAMA for videos.

    One schedule runs through the epochs in which only the head learns and those after them.
    """
    steps = (settings.linear_epochs + settings.epochs) * steps_per_epoch
    rise = int(settings.warm_up_epochs * steps_per_epoch)
    if settings.schedule == "released":
        return published_cosine(step, steps, rise)
    return warm_up_cosine(step, steps, rise)


def adam(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Adam with one learning rate; its weight decay is the L2 form, a term of the gradient."""
    return torch.optim.Adam(
        model.named_parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )


def published_cosine(step: int, steps: int, warm_up: int) -> float:
    """FAST-VQA and SAMA for videos, as released: a linear rise from 0, then a cosine.

    `k / w` for `k <= w`, then `(1 + cos(pi (k - w) / M)) / 2`, for w steps of warm-up out of M.

    The first update has a rate of 0 and so changes nothing. And because the cosine takes M steps
    beginning after the warm-up, it never reaches 0; `warm_up_cosine` mends both. M counts all steps
    of the training including any with a frozen backbone; w is `int(2.5 * steps per epoch)` as
    published.

    >>> [round(published_cosine(step, 3000, 250), 3) for step in (0, 125, 250, 2999)]
    [0.0, 0.5, 1.0, 0.017]
    """
    if step < warm_up:
        return step / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / steps))


def warm_up_cosine(step: int, steps: int, warm_up: int) -> float:
    """A linear rise that moves from the first step on, then a cosine that ends at 0.

    `(k + 1) / w` for `k < w`, then `(1 + cos(pi (k - w) / (M - w))) / 2`, and 0 from M on, for w
    steps of warm-up (0 for none) out of M.

    >>> [round(warm_up_cosine(step, 10, 2), 2) for step in (0, 1, 2, 6, 9, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.04, 0.0]
    """
    if step < warm_up:
        return (step + 1) / warm_up
    if step >= steps:
        return 0.0
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


def warm_up_constant(step: int, warm_up: int) -> float:
    """SAMA for images: `max(0.01, k / w)` up to step w, five epochs as published, then 1 for good.

    >>> [warm_up_constant(step, 500) for step in (0, 250, 500, 9999)]
    [0.01, 0.5, 1.0, 1.0]
    """
    return max(0.01, step / warm_up) if step < warm_up else 1.0


def step_decay(epoch: int, factor: float = 0.95, every: int = 2) -> float:
    """SimpleVQA: `factor ** (epoch // every)`.

    The factor is 0.95 in the paper's code, 0.9 in SimpleVQA's original script.

    >>> [round(step_decay(epoch), 6) for epoch in range(5)]
    [1.0, 1.0, 0.95, 0.95, 0.9025]
    """
    return float(factor ** (epoch // every))


def advance(schedule: torch.optim.lr_scheduler.LRScheduler) -> None:
    """On to the next step's learning rates, also where this step was left out.

    Bad files leave one out, and so does a scaler at an overflow; torch warns where it is the first.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
        schedule.step()


def moving_average(model: nn.Module, decay: float) -> AveragedModel | None:
    """The weights' moving average; None without one, for a decay of 0."""
    if decay == 0:
        return None
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]
    # As published: the average begins with the weights before the first step, not after it.
    average.n_averaged.fill_(1)
    return average


def load_weights(model: nn.Module, path: Path) -> LoadReport:
    """Load the weights of a training script's checkpoint, or published ones of a whole model.

    Raises:
        CheckpointError: a checkpoint of an older version, or whose weights do not fit.
        PublishedWeightsError: published weights cannot be used, or are a backbone's only.
    """
    if is_checkpoint(path):
        return load_checkpoint_weights(model, path, load_checkpoint(path))
    report = load_published(model, path)
    learned = {name for name, _ in model.named_parameters()}
    if lacking := learned & report.kept.keys():
        raise PublishedWeightsError(
            f"{path}: expected weights of a whole {type(model).__name__}, got {report.format}:"
            f" {report.kept[min(lacking)]}"
        )
    return report


def load_checkpoint_weights(model: nn.Module, path: Path, checkpoint: Checkpoint) -> LoadReport:
    """Load what `load_checkpoint` found in `path`.

    Raises:
        CheckpointError: the weights do not fit the model; names the file.
    """
    try:
        return load_published(model, checkpoint.state_dict)
    except PublishedWeightsError as error:
        raise CheckpointError(f"{path}: its {error}") from error


def load_initial_weights(
    model: nn.Module,
    settings: Settings,
    copy_missing: bool = False,
    allow_shape_mismatch: bool = False,
) -> nn.Module:
    """Load `pretrained`, then `finetune_from`, as far as given, and print what became of each.

    The freshly built model is what is returned; `copy_missing` and `allow_shape_mismatch` are those
    of `load_published`, for `pretrained`.

    Raises:
        PublishedWeightsError: a file cannot be used.
    """
    if settings.pretrained is not None:
        report = load_published(
            model,
            settings.pretrained,
            copy_missing=copy_missing,
            allow_shape_mismatch=allow_shape_mismatch,
        )
        print(report)
    if settings.finetune_from is not None:
        print(load_weights(model, settings.finetune_from))
    return model
