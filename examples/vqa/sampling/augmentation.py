"""Augmentation of whole frames, before fragments are cut from them."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms import v2  # type: ignore[import-untyped]

Augmentation = Literal["none", "auto", "rand", "trivial"]
# With torchvision's defaults; AutoAugment's is its policy for ImageNet.
_TRANSFORMS = {
    "none": v2.Identity,
    "auto": v2.AutoAugment,
    "rand": v2.RandAugment,
    "trivial": v2.TrivialAugmentWide,
}


def draw_augmentation(
    augmentation: Augmentation, generator: torch.Generator
) -> Callable[[Tensor], Tensor]:
    """One draw, for all frames of a clip as they come: uint8 [T, C, H, W] -> the same.

    Equal frames stay equal, and the global generator is left as it was.
    """
    if augmentation not in _TRANSFORMS:
        names = ", ".join(_TRANSFORMS)
        raise ValueError(f"augmentation: expected one of {names}, got {augmentation!r}")
    transform = _TRANSFORMS[augmentation]()
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
