"""The first layer of the small image networks: what stands out from the picture, not the picture.

With a few hundred training images a network fed with RGB learns what is pictured.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqa.models.imagenet import DEVIATION, MEAN
from vqa.models.quality_planes import still_planes

PLANES = 2
"""Planes that `ContrastPlanes` returns."""

_LUMA = (0.299, 0.587, 0.114)


class ContrastPlanes(nn.Module):
    """Normalised luma and local contrast (see `still_planes`); no parameters."""

    def forward(self, images: Tensor) -> Tensor:
        """Planes [B, 2, H, W] of images [B, 3, H, W] normalised as for ImageNet; H, W > 3."""
        weights = [255 * part * deviation for part, deviation in zip(_LUMA, DEVIATION, strict=True)]
        black = 255 * sum(part * mean for part, mean in zip(_LUMA, MEAN, strict=True))
        # In single precision also under autocast: a variance is a difference of squares.
        luma = torch.einsum("bchw,c->bhw", images.float(), images.new_tensor(weights).float())
        return still_planes(luma + black).transpose(0, 1).to(images.dtype)
