"""SlowFast R50 (Feichtenhofer et al. 2019) as a frozen extractor of motion features.

The published weights are PyTorchVideo's `slowfast_r50`. That package is not used here: its last
release is of 2022 and it needs fvcore, whose import calls `torch.jit.script`, deprecated, and so
warns under torch 2.15. This is the network alone, with PyTorchVideo's names for every tensor and
without the Kinetics classifier, which nothing of SimpleVQA reads.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from vqa.models.published import Drop, Format, keeps_counts

FRAMES = 32
"""Frames per clip, all seen by the fast pathway."""
SIZE = 224
"""Height and width of a frame in pixels."""

_ALPHA = 4  # the fast pathway has so many frames for one of the slow pathway
_BETA = 8  # and so much fewer channels
_DEPTHS = (3, 4, 6, 3)
SLOW_FRAMES = (0, 4, 8, 13, 17, 22, 26, 31)
"""What the slow pathway sees of them: a quarter, spread from the first to the last and rounded
down, hence not every fourth."""


class SlowFastR50(nn.Module):
    """Motion features of clips; frozen, always in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        stages = [_stage(number, depth) for number, depth in enumerate(_DEPTHS)]
        slow, fast = _stem_pathway(64, kernel_time=1), _stem_pathway(64 // _BETA, kernel_time=5)
        self.blocks = nn.ModuleList([_Block(slow, fast, channels=64 // _BETA), *stages])
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> SlowFastR50:
        """Stays in evaluation mode, whatever the model around it does."""
        return super().train(False)

    @property
    def published_formats(self) -> tuple[Format, ...]:
        return (_PYTORCHVIDEO,)

    def forward(self, clips: Tensor) -> Tensor:
        """Features float32 [B, 2304] of clips [B, 3, 32, 224, 224], (v / 255 - 0.45) / 0.225.

        Means of the last stage over time and space: 2048 of the slow pathway, 256 of the fast one.
        """
        # The published pooling has a fixed window.
        if clips.ndim != 5 or clips.shape[1:] != (3, FRAMES, SIZE, SIZE):
            raise ValueError(
                f"clips: expected [B, 3, {FRAMES}, {SIZE}, {SIZE}], got {list(clips.shape)}"
            )
        slow, fast = clips[:, :, SLOW_FRAMES], clips
        with torch.no_grad():
            for block in self.blocks:
                slow, fast = block(slow, fast)
        return torch.cat([slow.mean(dim=(2, 3, 4)), fast.mean(dim=(2, 3, 4))], dim=1)


class _Block(nn.Module):
    """Both pathways; then the fast one, of so many channels, joins the slow one."""

    def __init__(self, slow: nn.Module, fast: nn.Module, channels: int | None) -> None:
        super().__init__()
        self.multipathway_blocks = nn.ModuleList([slow, fast])
        self.multipathway_fusion = None if channels is None else _Fusion(channels)

    def forward(self, slow: Tensor, fast: Tensor) -> tuple[Tensor, Tensor]:
        slow, fast = self.multipathway_blocks[0](slow), self.multipathway_blocks[1](fast)
        if self.multipathway_fusion is not None:
            slow = self.multipathway_fusion(slow, fast)
        return slow, fast


class _Fusion(nn.Module):
    """Brings the fast pathway to the slow one's frame rate and appends it to its channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_fast_to_slow = _convolution(
            channels, 2 * channels, (7, 1, 1), stride=(_ALPHA, 1, 1)
        )
        self.norm = nn.BatchNorm3d(2 * channels)

    def forward(self, slow: Tensor, fast: Tensor) -> Tensor:
        brought = torch.relu(self.norm(self.conv_fast_to_slow(fast)))
        return torch.cat([slow, brought], dim=1)


class _Residual(nn.Module):
    """A bottleneck; the shortcut around it is projected where the number of channels changes."""

    def __init__(self, inputs: int, outputs: int, kernel_time: int, stride: int) -> None:
        super().__init__()
        steps = (1, stride, stride)
        self.branch1_conv: nn.Module = nn.Identity()
        self.branch1_norm: nn.Module = nn.Identity()
        if inputs != outputs:
            self.branch1_conv = _convolution(inputs, outputs, (1, 1, 1), steps)
            self.branch1_norm = nn.BatchNorm3d(outputs)
        self.branch2 = _bottleneck(inputs, outputs, kernel_time, steps)

    def forward(self, features: Tensor) -> Tensor:
        shortcut = self.branch1_norm(self.branch1_conv(features))
        return torch.relu(shortcut + self.branch2(features))


def _stem_pathway(channels: int, kernel_time: int) -> nn.Module:
    layers = OrderedDict(
        conv=_convolution(3, channels, (kernel_time, 7, 7), stride=(1, 2, 2)),
        norm=nn.BatchNorm3d(channels),
        activation=nn.ReLU(),
        pool=nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
    )
    return nn.Sequential(layers)


def _stage(number: int, depth: int) -> nn.Module:
    """Residual blocks of both pathways; all stages but the last end in a fusion."""
    outputs = 256 << number
    own = 64 if number == 0 else outputs // 2  # without what the last fusion brought along
    stride = 1 if number == 0 else 2
    # The slow pathway looks along time in its last two stages only.
    slow_time = 1 if number < 2 else 3
    slow = _residual_stage(own + 2 * own // _BETA, outputs, depth, slow_time, stride)
    fast = _residual_stage(own // _BETA, outputs // _BETA, depth, 3, stride)
    return _Block(slow, fast, channels=None if number == len(_DEPTHS) - 1 else outputs // _BETA)


def _residual_stage(
    inputs: int, outputs: int, depth: int, kernel_time: int, stride: int
) -> nn.Module:
    first = _Residual(inputs, outputs, kernel_time, stride)
    rest = [_Residual(outputs, outputs, kernel_time, stride=1) for _ in range(depth - 1)]
    return nn.Sequential(OrderedDict(res_blocks=nn.Sequential(first, *rest)))


def _bottleneck(
    inputs: int, outputs: int, kernel_time: int, stride: tuple[int, int, int]
) -> nn.Module:
    """Along time, then in the plane, then to all channels."""
    inner = outputs // 4
    layers = OrderedDict(
        conv_a=_convolution(inputs, inner, (kernel_time, 1, 1)),
        norm_a=nn.BatchNorm3d(inner),
        activation_a=nn.ReLU(),
        conv_b=_convolution(inner, inner, (1, 3, 3), stride),
        norm_b=nn.BatchNorm3d(inner),
        activation_b=nn.ReLU(),
        conv_c=_convolution(inner, outputs, (1, 1, 1)),
        norm_c=nn.BatchNorm3d(outputs),
    )
    return nn.Sequential(layers)


def _convolution(
    inputs: int,
    outputs: int,
    kernel: tuple[int, int, int],
    stride: tuple[int, int, int] = (1, 1, 1),
) -> nn.Conv3d:
    time, height, width = (size // 2 for size in kernel)
    return nn.Conv3d(inputs, outputs, kernel, stride, (time, height, width), bias=False)


def _place(key: str) -> str | Drop:
    if key.startswith("blocks.6."):
        return Drop("the Kinetics classifier: features are taken before it")
    return key


_PYTORCHVIDEO = Format(
    name="SlowFast R50, Kinetics-400, PyTorchVideo",
    marks=("blocks.0.multipathway_fusion.conv_fast_to_slow.weight",),
    place=_place,
    keeps=keeps_counts,
)
