"""Augmentation of whole frames, before fragments are cut from them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms import v2  # type: ignore[import-untyped]

Augmentation = Literal["none", "auto", "rand", "trivial"]


def augment(frames: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Augment a clip: one draw for all its frames, so that equal frames stay equal.

    Args:
        frames: uint8 [T, C, H, W].
        augmentation: `"auto"` (AutoAugment, ImageNet policy), `"rand"` (RandAugment), `"trivial"`
            (TrivialAugmentWide), each with torchvision's defaults, or `"none"`.
        generator: source of randomness; the global generator is left as it was.

    Returns:
        uint8 [T, C, H, W].

    Raises:
        ValueError: frames of another type, or an unknown augmentation.
    """
    if frames.dtype != torch.uint8:
        raise ValueError(f"frames: expected uint8, got {frames.dtype}")
    transform = _transform(augmentation)
    # torchvision knows the global generator only; forking gives it back its state afterwards.
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        augmented: Tensor = transform(frames)
    return augmented


def _transform(augmentation: Augmentation) -> torch.nn.Module:
    transforms = {
        "none": v2.Identity,
        "auto": v2.AutoAugment,
        "rand": v2.RandAugment,
        "trivial": v2.TrivialAugmentWide,
    }
    if augmentation not in transforms:
        raise ValueError(
            f"augmentation: expected one of {', '.join(transforms)}, got {augmentation!r}"
        )
    transform: torch.nn.Module = transforms[augmentation]()
    return transform
