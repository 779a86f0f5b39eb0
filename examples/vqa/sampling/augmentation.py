"""Augmentation of whole frames, before fragments are cut from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms import v2  # type: ignore[import-untyped]

Augmentation = Literal["none", "auto", "rand", "trivial"]


Change = Callable[[Tensor], Tensor]


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
    return draw_augmentation(augmentation, generator)(frames)


def draw_augmentation(augmentation: Augmentation, generator: torch.Generator) -> Change:
    """One draw of an augmentation, to be applied to the frames of a clip as they come.

    Args:
        augmentation: as for `augment`.
        generator: source of randomness; the global generator is left as it was.

    Returns:
        A function from uint8 [T, C, H, W], any number of a clip's frames, to as many augmented
        ones.

    Raises:
        ValueError: an unknown augmentation; from the function: frames of another type.
    """
    transform = _transform(augmentation)
    # torchvision knows the global generator only; forking gives it back its state afterwards.
    seed = int(torch.randint(2**62, (), generator=generator))

    def change(frames: Tensor) -> Tensor:
        if frames.dtype != torch.uint8:
            raise ValueError(f"frames: expected uint8, got {frames.dtype}")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            augmented: Tensor = transform(frames)
        return augmented

    return change


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
