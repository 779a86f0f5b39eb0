"""A FAST-VQA of some ten thousand parameters, for the demo and the tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TinyFastVqa(nn.Module):
    """Fragments -> small spatio-temporal backbone -> a quality score at every location.

    Three convolutions look around in space and shrink each side eightfold, a fourth mixes
    neighbouring frames. The head scores every location of the feature map and the clip's score is
    the mean, as in FAST-VQA.

    Args:
        planes: number of input planes C.
        width: channels of the first convolution, a multiple of 4; the next have two and three
            times as many.
    """

    def __init__(self, planes: int = 3, width: int = 16) -> None:
        super().__init__()
        self.space = nn.Sequential(
            *_convolution(planes, width, kernel=4, stride=2, padding=1),
            *_convolution(width, 2 * width, kernel=2, stride=2, padding=0),
            *_convolution(2 * width, 3 * width, kernel=3, stride=2, padding=1),
        )
        self.time = nn.Conv1d(3 * width, 3 * width, kernel_size=3, padding=1)
        self.head = nn.Sequential(nn.Conv2d(3 * width, width, 1), nn.GELU(), nn.Conv2d(width, 1, 1))
        self.to(memory_format=torch.channels_last)  # twice as fast on a CPU

    def forward(self, fragments: Tensor) -> Tensor:
        """Scores [B] of fragments, floating [B, C, T, H, W]; H and W multiples of 8."""
        return self.score_map(fragments).mean(dim=(1, 2, 3))

    def score_map(self, fragments: Tensor) -> Tensor:
        """Scores per location [B, T, H/8, W/8] of fragments [B, C, T, H, W]."""
        clips, _, frames = fragments.shape[:3]
        images = fragments.transpose(1, 2).flatten(0, 1)
        features = self.space(images.contiguous(memory_format=torch.channels_last))
        features = features + self._mix_frames(features, clips)
        scores: Tensor = self.head(features)
        return scores.view(clips, frames, *scores.shape[2:])

    def _mix_frames(self, features: Tensor, clips: int) -> Tensor:
        """Convolve along time at every location: [B*T, C, h, w] -> [B*T, C, h, w]."""
        _, channels, height, width = features.shape
        by_clip = features.reshape(clips, -1, channels, height, width)
        by_location = by_clip.permute(0, 3, 4, 2, 1)
        mixed = nn.functional.gelu(self.time(by_location.flatten(0, 2)))
        by_frame = mixed.view(clips, height, width, channels, -1).permute(0, 4, 3, 1, 2)
        return by_frame.reshape(-1, channels, height, width)


def _convolution(
    inputs: int, outputs: int, kernel: int, stride: int, padding: int
) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inputs, outputs, kernel, stride, padding),
        nn.GroupNorm(4, outputs),
        nn.GELU(),
    )
