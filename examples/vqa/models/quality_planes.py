"""What the small models see instead of RGB: planes in which distortions stand out from content.

With a few hundred training clips or images a network fed with RGB learns what is pictured.
Mean-subtracted contrast-normalised luma (MSCN; Ruderman 1994, Mittal et al. 2012) is close to
Gaussian for any undistorted photograph, so what deviates is the distortion.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from vqa.models.imagenet import DEVIATION, MEAN

PLANES, CONTRAST_PLANES = 3, 2
"""Number of planes that `quality_planes` and `ContrastPlanes` return."""
RADIUS = 3
"""Pixels by which the window reaches beyond the one that it is for."""

_SIGMA = 7 / 6
_LUMA = (0.299, 0.587, 0.114)


def quality_planes(luma: Tensor) -> Tensor:
    """Float32 [3, T, H, W] of a video's luma [T, H, W], 0..255.

    With a Gaussian window (deviation 7/6, cut at `RADIUS` pixels), local mean `m` and deviation
    `s`:

    1. `(y - m) / (s + 1)`, the MSCN coefficients;
    2. `(y_t - y_(t-1)) / (s + 1)`, zero where the video stands still (the first frame takes the
       second one's, if there is one);
    3. `log(s + 1) - 2`, how much contrast there is.
    """
    y = luma.float()
    change = y.diff(dim=0)
    change = torch.cat([change[:1], change]) if len(change) else torch.zeros_like(y)
    return inner_planes(_mirrored(y), change)


def inner_planes(luma: Tensor, change: Tensor) -> Tensor:
    """The planes of `quality_planes` where the surroundings are given instead of mirrored.

    `luma` is [N, H + 2 * RADIUS, W + 2 * RADIUS], `change` the inner part's `y_t - y_(t-1)`.
    """
    deviation, contrast = _contrast(luma.float())
    return torch.stack([deviation / contrast, change / contrast, contrast.log() - 2])


class ContrastPlanes(nn.Module):
    """The planes of `quality_planes` that need no second frame: the first and the third."""

    def forward(self, images: Tensor) -> Tensor:
        """Planes [B, 2, H, W] of images [B, 3, H, W] normalised as for ImageNet; H, W > 3."""
        weights = [255 * part * deviation for part, deviation in zip(_LUMA, DEVIATION, strict=True)]
        black = 255 * sum(part * mean for part, mean in zip(_LUMA, MEAN, strict=True))
        # In single precision also under autocast: a variance is a difference of squares.
        luma = torch.einsum("bchw,c->bhw", images.float(), images.new_tensor(weights).float())
        deviation, contrast = _contrast(_mirrored(luma + black))
        planes = torch.stack([deviation / contrast, contrast.log() - 2], dim=1)
        return planes.to(images.dtype)


def _mirrored(y: Tensor) -> Tensor:
    """Pictures [B, H, W] with their surroundings, mirrored at the edges."""
    return functional.pad(y[:, None], (RADIUS,) * 4, mode="reflect")[:, 0]


def _contrast(y: Tensor) -> tuple[Tensor, Tensor]:
    """`y - m` and `s + 1` of the inner part with local mean `m` and deviation `s`, [B, H, W]."""
    mean = _smooth(y)
    variance = _smooth(y.square()) - mean.square()
    inner = y[:, RADIUS:-RADIUS, RADIUS:-RADIUS]
    return inner - mean, variance.clamp(min=0).sqrt() + 1


def _smooth(frames: Tensor) -> Tensor:
    """Separable Gaussian over rows and columns of the inner part."""
    weights = [math.exp(-0.5 * (k / _SIGMA) ** 2) for k in range(-RADIUS, RADIUS + 1)]
    kernel = frames.new_tensor(weights) / sum(weights)
    rows = functional.conv2d(frames[:, None], kernel.view(1, 1, -1, 1))
    return functional.conv2d(rows, kernel.view(1, 1, 1, -1))[:, 0]
