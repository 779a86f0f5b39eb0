"""Base optimizers as the papers build them."""

from __future__ import annotations

import torch
from torch import nn

from vqa.training.schedules import published_cosine, warm_up_cosine
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
    if settings.schedule == "published":
        return published_cosine(step, steps, rise)
    return warm_up_cosine(step, steps, rise)


def adam(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Adam with one learning rate; its weight decay is the L2 form, a term of the gradient."""
    return torch.optim.Adam(
        model.named_parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
