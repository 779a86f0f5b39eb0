"""What a training begins with: base optimizers as the papers build them, schedules, weights.

A schedule is a multiplier of the learning rate, for torch's `LambdaLR`: a function of the number
of the step (or epoch) that is about to be made, from 0.
"""

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation
from vqa.models import LoadReport, PublishedWeightsError, load_published
from vqa.training.checkpoint import Checkpoint, CheckpointError, is_checkpoint, load_checkpoint
from vqa.training.settings import Settings


def split_off_head(
    model: nn.Module, head: str
) -> tuple[list[tuple[str, nn.Parameter]], list[tuple[str, nn.Parameter]]]:
    """Named parameters of everything but the module called `head`, and of that module."""
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


def adam(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Adam with one learning rate; its weight decay is the L2 form, a term of the gradient."""
    return torch.optim.Adam(
        model.named_parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )


def perturbed(
    optimizer: torch.optim.Optimizer, settings: Settings, end: tuple[str, ...] = ()
) -> AdversarialWeightPerturbation | RandomWeightPerturbation:
    """Wrap an optimizer that has the parameters' names; given `end`, only modules called so move.

    Plain training is wrapped, too, with a size of 0: the training loop need not tell it apart.
    """

    def select(name: str, parameter: Tensor) -> bool:
        if end and not name.startswith(tuple(f"{own}." for own in end)):
            return False
        return "weight" in name if settings.named_weight else parameter.ndim > 1

    if settings.perturb == "none":
        return AdversarialWeightPerturbation(optimizer, gamma=0.0)
    how: dict[str, Any] = {"constraint": settings.constraint, "epsilon": settings.epsilon}
    if settings.perturb == "rwp":
        device = optimizer.param_groups[0]["params"][0].device
        how["generator"] = torch.Generator(device).manual_seed(settings.seed)
        return RandomWeightPerturbation(optimizer, settings.gamma, select=select, **how)
    how["steps"] = settings.steps if settings.perturb == "awp" else 1
    how["ascent"] = "update" if settings.perturb == "awp-update" else "current"
    return AdversarialWeightPerturbation(optimizer, settings.gamma, select=select, **how)


def cosine_multiplier(step: int, steps_per_epoch: int, settings: Settings) -> float:
    """FAST-VQA and SAMA for videos: one schedule through head-only epochs and those after them."""
    steps = (settings.linear_epochs + settings.epochs) * steps_per_epoch
    rise = int(settings.warm_up_epochs * steps_per_epoch)
    cosine = published_cosine if settings.schedule == "released" else warm_up_cosine
    return cosine(step, steps, rise)


def published_cosine(step: int, steps: int, warm_up: int) -> float:
    """FAST-VQA and SAMA for videos, as released: a linear rise from 0, then a cosine.

    `k / w` for `k <= w`, then `(1 + cos(pi (k - w) / M)) / 2`, for w steps of warm-up out of M, any
    with a frozen backbone included; w is `int(2.5 * steps per epoch)` as published. So the first
    update has a rate of 0, and the cosine, which takes M steps after the warm-up, never reaches 0.
    """
    if step < warm_up:
        return step / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / steps))


def warm_up_cosine(step: int, steps: int, warm_up: int) -> float:
    """A linear rise that moves from the first step on, then a cosine that ends at 0.

    `(k + 1) / w` for `k < w`, then `(1 + cos(pi (k - w) / (M - w))) / 2`, and 0 from M on, for w
    steps of warm-up (0 for none) out of M.
    """
    if step < warm_up:
        return (step + 1) / warm_up
    if step >= steps:
        return 0.0
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


def warm_up_constant(step: int, warm_up: int) -> float:
    """SAMA for images: `max(0.01, k / w)` up to step w, five epochs as published, then 1."""
    return max(0.01, step / warm_up) if step < warm_up else 1.0


def step_decay(epoch: int, factor: float = 0.95) -> float:
    """SimpleVQA: `factor ** (epoch // 2)`; its own script has 0.9, the paper's code 0.95."""
    return float(factor ** (epoch // 2))


def advance(schedule: torch.optim.lr_scheduler.LRScheduler) -> None:
    """On to the next step's learning rates, also where this step was left out.

    Bad files leave one out, and so does a scaler at an overflow; torch warns where it is the first.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
        schedule.step()


def moving_average(model: nn.Module, decay: float) -> AveragedModel | None:
    """The weights' moving average; None for a decay of 0."""
    if decay == 0:
        return None
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]
    # As published: the average begins with the weights before the first step, not after it.
    average.n_averaged.fill_(1)
    return average


def load_weights(model: nn.Module, path: Path) -> LoadReport:
    """Load the weights of a training script's checkpoint, or published ones of a whole model."""
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
    """Load what `load_checkpoint` found in `path`."""
    try:
        return load_published(model, checkpoint.state_dict)
    except PublishedWeightsError as error:
        raise CheckpointError(f"{path}: its {error}") from error


def load_initial_weights(model: nn.Module, settings: Settings, **how: bool) -> nn.Module:
    """Load `pretrained`, then `finetune_from`, as far as given, and print what became of each.

    Returns the model; further arguments are those of `load_published`, for `pretrained`.
    """
    if settings.pretrained is not None:
        print(load_published(model, settings.pretrained, **how))
    if settings.finetune_from is not None:
        print(load_weights(model, settings.finetune_from))
    return model
