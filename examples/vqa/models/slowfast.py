"""SlowFast R50 (Feichtenhofer et al. 2019) as a frozen extractor of motion features.

The published weights are PyTorchVideo's `slowfast_r50`. That package is not used here: its last
release is of 2022 and it needs fvcore, whose import calls `torch.jit.script`, deprecated, and so
warns under torch 2.15. This is the network alone, with PyTorchVideo's names for every tensor and
without the Kinetics classifier, which nothing of SimpleVQA reads.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vqa.models.formats import Drop, Format

FRAMES = 32
"""Frames per clip, all seen by the fast pathway."""
SIZE = 224
"""Height and width of a frame in pixels."""
FEATURES = 2304
"""Length of a clip's features: 2048 of the slow pathway, then 256 of the fast one."""

_ALPHA = 4  # the fast pathway has so many frames for one of the slow pathway
_BETA = 8  # and so much fewer channels
_DEPTHS = (3, 4, 6, 3)


def slow_frames(frames: int = FRAMES) -> Tensor:
    """Which frames of a clip the slow pathway sees, int64 [frames / 4].

    A quarter of them, spread from the first to the last and rounded down, hence not every fourth.

    >>> slow_frames().tolist()
    [0, 4, 8, 13, 17, 22, 26, 31]
    """
    # In integers, where no rounding can move a frame.
    last, count = frames - 1, frames // _ALPHA
    return torch.arange(count) * last // max(count - 1, 1)


class SlowFastR50(nn.Module):
    """Motion features of clips; frozen, always in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        stages = [
            _Stage(number, depth, fused=number < len(_DEPTHS) - 1)
            for number, depth in enumerate(_DEPTHS)
        ]
        self.blocks = nn.ModuleList([_Stem(), *stages])
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> SlowFastR50:
        """Stays in evaluation mode, whatever the model around it does."""
        return super().train(False)

    @property
    def published_formats(self) -> tuple[Format, ...]:
        """PyTorchVideo's file, and what `state_dict` of this network gives."""
        return (_PYTORCHVIDEO,)

    def forward(self, clips: Tensor) -> Tensor:
        """Features float32 [B, 2304] of clips [B, 3, 32, 224, 224], normalised.

        Pixels are normalised as (v / 255 - 0.45) / 0.225. Feature map after the last stage, mean
        over time and space: slow pathway, then fast pathway.

        Raises:
            ValueError: clips of another shape; the published pooling has a fixed window.
        """
        if clips.ndim != 5 or clips.shape[1:] != (3, FRAMES, SIZE, SIZE):
            raise ValueError(
                f"clips: expected [B, 3, {FRAMES}, {SIZE}, {SIZE}], got {list(clips.shape)}"
            )
        slow, fast = clips[:, :, slow_frames().to(clips.device)], clips
        with torch.no_grad():
            for block in self.blocks:
                slow, fast = block(slow, fast)
        return torch.cat([slow.mean(dim=(2, 3, 4)), fast.mean(dim=(2, 3, 4))], dim=1)


class _Stem(nn.Module):
    """First convolution of both pathways, then the fast one joins the slow one."""

    def __init__(self) -> None:
        super().__init__()
        self.multipathway_blocks = nn.ModuleList(
            [_StemPathway(64, kernel_time=1), _StemPathway(64 // _BETA, kernel_time=5)]
        )
        self.multipathway_fusion = _Fusion(64 // _BETA)

    def forward(self, slow: Tensor, fast: Tensor) -> tuple[Tensor, Tensor]:
        slow, fast = self.multipathway_blocks[0](slow), self.multipathway_blocks[1](fast)
        return self.multipathway_fusion(slow, fast), fast


class _StemPathway(nn.Module):
    def __init__(self, channels: int, kernel_time: int) -> None:
        super().__init__()
        self.conv = _convolution(3, channels, (kernel_time, 7, 7), stride=(1, 2, 2))
        self.norm = nn.BatchNorm3d(channels)
        self.pool = nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))

    def forward(self, clips: Tensor) -> Tensor:
        features: Tensor = self.pool(torch.relu(self.norm(self.conv(clips))))
        return features


class _Stage(nn.Module):
    """Residual blocks of both pathways; all stages but the last end in a fusion."""

    def __init__(self, number: int, depth: int, fused: bool) -> None:
        super().__init__()
        outputs = 256 << number
        own = 64 if number == 0 else outputs // 2  # without what the last fusion brought along
        stride = 1 if number == 0 else 2
        # The slow pathway looks along time in its last two stages only.
        slow_time = 1 if number < 2 else 3
        self.multipathway_blocks = nn.ModuleList(
            [
                _ResidualStage(own + 2 * own // _BETA, outputs, depth, slow_time, stride),
                _ResidualStage(own // _BETA, outputs // _BETA, depth, 3, stride),
            ]
        )
        self.multipathway_fusion = _Fusion(outputs // _BETA) if fused else None

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


class _ResidualStage(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, depth: int, kernel_time: int, stride: int
    ) -> None:
        super().__init__()
        first = _Residual(inputs, outputs, kernel_time, stride, projected=True)
        rest = [
            _Residual(outputs, outputs, kernel_time, stride=1, projected=False)
            for _ in range(depth - 1)
        ]
        self.res_blocks = nn.Sequential(first, *rest)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.res_blocks(features)
        return result


class _Residual(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, kernel_time: int, stride: int, projected: bool
    ) -> None:
        super().__init__()
        steps = (1, stride, stride)
        self.branch1_conv = _convolution(inputs, outputs, (1, 1, 1), steps) if projected else None
        self.branch1_norm = nn.BatchNorm3d(outputs) if projected else None
        self.branch2 = _Bottleneck(inputs, outputs, kernel_time, steps)

    def forward(self, features: Tensor) -> Tensor:
        shortcut = features
        if self.branch1_conv is not None and self.branch1_norm is not None:
            shortcut = self.branch1_norm(self.branch1_conv(features))
        return torch.relu(shortcut + self.branch2(features))


class _Bottleneck(nn.Module):
    """Along time, then in the plane, then to all channels."""

    def __init__(
        self, inputs: int, outputs: int, kernel_time: int, stride: tuple[int, int, int]
    ) -> None:
        super().__init__()
        inner = outputs // 4
        self.conv_a = _convolution(inputs, inner, (kernel_time, 1, 1))
        self.norm_a = nn.BatchNorm3d(inner)
        self.conv_b = _convolution(inner, inner, (1, 3, 3), stride)
        self.norm_b = nn.BatchNorm3d(inner)
        self.conv_c = _convolution(inner, outputs, (1, 1, 1))
        self.norm_c = nn.BatchNorm3d(outputs)

    def forward(self, features: Tensor) -> Tensor:
        features = torch.relu(self.norm_a(self.conv_a(features)))
        features = torch.relu(self.norm_b(self.conv_b(features)))
        result: Tensor = self.norm_c(self.conv_c(features))
        return result


def _convolution(
    inputs: int,
    outputs: int,
    kernel: tuple[int, int, int],
    stride: tuple[int, int, int] = (1, 1, 1),
) -> nn.Conv3d:
    time, height, width = (size // 2 for size in kernel)
    return nn.Conv3d(inputs, outputs, kernel, stride, (time, height, width), bias=False)


def _is_slowfast(tensors: Mapping[str, Tensor]) -> bool:
    return "blocks.0.multipathway_fusion.conv_fast_to_slow.weight" in tensors


def _place(key: str) -> str | Drop:
    if key.startswith("blocks.6."):
        return Drop("the Kinetics classifier: features are taken before it")
    return key


def _keeps(name: str) -> str | None:
    if name.endswith("num_batches_tracked"):
        return "a count of training batches, which older files lack and nothing here reads"
    return None


_PYTORCHVIDEO = Format(
    name="SlowFast R50, Kinetics-400, PyTorchVideo",
    recognises=_is_slowfast,
    place=_place,
    keeps=_keeps,
)
