"""How a short clip moves, as a vector: published SlowFast features or plain frame differences."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from vqa.models import load_published
from vqa.models.slowfast import FRAMES, SIZE, SlowFastR50

MotionKind = Literal["slowfast_r50", "frame_differences"]

FRAME_DIFFERENCES = 15
"""Length of the features of that kind."""


class MotionExtractor(Protocol):
    """What turns a clip into motion features."""

    @property
    def identity(self) -> str:
        """Tells extractors apart that give other features, weights included."""

    @property
    def size(self) -> int:
        """Height and width of the frames that it takes, in pixels."""

    def __call__(self, clip: Tensor) -> Tensor:
        """Features float32 [M] of a clip, uint8 [T, 3, size, size]."""


def build_extractor(
    kind: MotionKind, weights: Path | None = None, device: torch.device | None = None
) -> MotionExtractor:
    """The extractor of that kind.

    Args:
        kind: which features.
        weights: published `slowfast_r50` weights; only for that kind, which must have them.
        device: where the network runs, by default the CPU.

    Raises:
        ValueError: weights are missing, unusable (`PublishedWeightsError`) or not needed.
    """
    if (weights is None) == (kind == "slowfast_r50"):
        expected = "a file of the published network" if weights is None else "none"
        raise ValueError(f"slowfast_weights: expected {expected} for {kind}, got {weights}")
    if weights is None:
        return FrameDifferences()
    network = SlowFastR50()
    load_published(network, weights)
    return SlowFastFeatures(network, device or torch.device("cpu"))


class SlowFastFeatures:
    """2304 features of 32 frames: 2048 of the slow pathway, then 256 of the fast one.

    Args:
        network: the frozen network.
        device: where it runs.
    """

    size = SIZE

    def __init__(self, network: SlowFastR50, device: torch.device) -> None:
        self.identity = f"slowfast_r50 {_digest(network)}"
        self._network, self._device = network.to(device), device

    def __call__(self, clip: Tensor) -> Tensor:
        """Features float32 [2304] of a clip, uint8 [32, 3, 224, 224].

        Raises:
            ValueError: a clip of another length.
        """
        if len(clip) != FRAMES:
            raise ValueError(f"clip: expected {FRAMES} frames, got {len(clip)}")
        pixels = (clip.to(self._device).float() / 255 - 0.45) / 0.225
        features: Tensor = self._network(pixels.transpose(0, 1)[None])
        return features[0].cpu()


class FrameDifferences:
    """Fifteen statistics of how much a clip's luma changes; no network, nothing learned.

    Over pairs of frames 1, 2 and 4 apart, in grey levels: the mean absolute difference, its
    deviation from pair to pair, the share of pairs that are equal, the mean change of brightness
    and its deviation. All but the share as sign(x) log(1 + |x|), which keeps them within a few
    units. They see freezing, stutter, fades and the speed of motion, nothing finer.
    """

    size = 64
    identity = "frame_differences 1"  # to be raised when the same clip would give other features
    _LAGS = (1, 2, 4)

    def __call__(self, clip: Tensor) -> Tensor:
        """Features float32 [15] of a clip, uint8 [T, 3, H, W].

        Raises:
            ValueError: fewer than 6 frames, of which no two pairs are 4 apart.
        """
        if len(clip) < max(self._LAGS) + 2:
            raise ValueError(f"clip: expected at least 6 frames, got {len(clip)}")
        red, green, blue = clip.float().unbind(1)
        luma = 0.299 * red + 0.587 * green + 0.114 * blue
        return torch.cat([self._statistics(luma, lag) for lag in self._LAGS])

    @staticmethod
    def _statistics(luma: Tensor, lag: int) -> Tensor:
        change = luma[lag:] - luma[:-lag]
        size = change.abs().mean(dim=(1, 2))
        brightness = change.mean(dim=(1, 2))
        levels = torch.stack([size.mean(), size.std(), brightness.mean(), brightness.std()])
        still = (size < 0.1).float().mean()  # a repeated frame, up to what the encoder added
        return torch.cat([levels.sign() * levels.abs().log1p(), still[None]])


def _digest(network: torch.nn.Module) -> str:
    """Of weights and statistics, whatever file they came in."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
