"""What the small model sees instead of RGB: planes in which distortions stand out from content.

With a few hundred training clips a network fed with RGB learns what is pictured. Mean-subtracted
contrast-normalised luma (MSCN; Ruderman 1994, Mittal et al. 2012) is close to Gaussian for any
undistorted photograph, so what deviates is the distortion.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

PLANES = 3
"""Number of planes that `quality_planes` returns."""


def quality_planes(luma: Tensor, sigma: float = 7 / 6, radius: int = 3) -> Tensor:
    """MSCN, temporal difference and local contrast of a video.

    With a Gaussian window (`sigma`, cut at `radius` pixels), local mean `m` and deviation `s`:

    1. `(y - m) / (s + 1)`, the MSCN coefficients;
    2. `(y_t - y_(t-1)) / (s + 1)`, zero where the video stands still (the first frame takes the
       second one's);
    3. `log(s + 1) - 2`, how much contrast there is.

    Args:
        luma: uint8 or floating [T, H, W], 0..255, T > 1.
        sigma: standard deviation of the window in pixels.
        radius: half width of the window in pixels.

    Returns:
        float32 [3, T, H, W].
    """
    y = luma.float()
    deviation, contrast = _contrast(y, sigma, radius)
    change = y.diff(dim=0)
    change = torch.cat([change[:1], change])
    return torch.stack([deviation / contrast, change / contrast, contrast.log() - 2])


def still_planes(luma: Tensor, sigma: float = 7 / 6, radius: int = 3) -> Tensor:
    """The planes of `quality_planes` that need no second frame: the first and the third.

    Args:
        luma: uint8 or floating [B, H, W], 0..255.
        sigma: standard deviation of the window in pixels.
        radius: half width of the window in pixels.

    Returns:
        float32 [2, B, H, W].
    """
    deviation, contrast = _contrast(luma.float(), sigma, radius)
    return torch.stack([deviation / contrast, contrast.log() - 2])


def _contrast(y: Tensor, sigma: float, radius: int) -> tuple[Tensor, Tensor]:
    """`y - m` and `s + 1` with local mean `m` and deviation `s`, [B, H, W] each."""
    mean = _smooth(y, sigma, radius)
    variance = _smooth(y.square(), sigma, radius) - mean.square()
    return y - mean, variance.clamp(min=0).sqrt() + 1


def _smooth(frames: Tensor, sigma: float, radius: int) -> Tensor:
    """Separable Gaussian over rows and columns of [T, H, W], edges mirrored."""
    weights = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-radius, radius + 1)]
    kernel = frames.new_tensor(weights) / sum(weights)
    padded = functional.pad(frames[:, None], (radius,) * 4, mode="reflect")
    rows = functional.conv2d(padded, kernel.view(1, 1, -1, 1))
    return functional.conv2d(rows, kernel.view(1, 1, 1, -1))[:, 0]
