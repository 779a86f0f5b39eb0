"""SimpleVQA (Sun et al. 2022): what frames look like, from a ResNet-50, and how they move."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models import resnet50  # type: ignore[import-untyped]

from vqa.models.published import Drop, Format, keeps_counts
from vqa.models.quality_planes import CONTRAST_PLANES, ContrastPlanes


class FrameScorer(nn.Module):
    """Pooled stages of an image network and motion features -> a score for every frame.

    `stages` takes images [B, 3, H, W] to feature maps [B, C_i, h_i, w_i], C_i in `channels`. Each
    is pooled by its mean and its (unbiased) standard deviation over locations: mean of the first
    stage, deviation of the first stage, mean of the second, ... Then follow `motion` motion
    features, and two linear layers with nothing between them give the score.
    """

    def __init__(
        self, stages: nn.Module, channels: Sequence[int], motion: int, hidden: int
    ) -> None:
        super().__init__()
        self.backbone = stages
        self.quality = nn.Sequential(
            nn.Linear(2 * sum(channels) + motion, hidden), nn.Linear(hidden, 1)
        )
        self.motion = motion

    def forward(self, frames: Tensor, motion: Tensor) -> Tensor:
        """Scores [B] of videos: means of `frame_scores`, with the same arguments."""
        return self.frame_scores(frames, motion).mean(dim=1)

    def frame_scores(self, frames: Tensor, motion: Tensor) -> Tensor:
        """Scores [B, N] of key frames, floating [B, N, 3, H, W], normalised as for ImageNet.

        `motion`, floating [B, N, M], are features of the clip that follows each frame.
        """
        expected = (*frames.shape[:2], self.motion)
        if motion.shape != expected:
            raise ValueError(f"motion: expected shape {list(expected)}, got {list(motion.shape)}")
        features = torch.cat([self.features(frames), motion], dim=2)
        scores: Tensor = self.quality(features)
        return scores.squeeze(2)

    def features(self, frames: Tensor) -> Tensor:
        """Pooled stages [B, N, 2 * sum of channels] of frames [B, N, 3, H, W]."""
        maps: tuple[Tensor, ...] = self.backbone(frames.flatten(0, 1))
        if maps[-1].shape[2:].numel() == 1:  # and hence no deviation
            raise ValueError(
                "frames: expected frames whose last feature map has several locations, got"
                f" {frames.shape[3]} x {frames.shape[4]} pixels"
            )
        pooled = [own for each in maps for own in (each.mean(dim=(2, 3)), each.std(dim=(2, 3)))]
        return torch.cat(pooled, dim=1).view(*frames.shape[:2], -1)


class SimpleVqa(FrameScorer):
    """The published network: ResNet-50 stages 2 to 4, 2048 slow and 256 fast SlowFast features."""

    def __init__(self, motion: int = 2304) -> None:
        super().__init__(_ResNet50Stages(), channels=(512, 1024, 2048), motion=motion, hidden=128)

    @property
    def published_formats(self) -> tuple[Format, ...]:
        return (_AUTHORS, _IMAGENET)


class TinySimpleVqa(FrameScorer):
    """The same on stages of 1, 2 and 3 times `width` channels, trained in minutes on a CPU."""

    def __init__(self, motion: int, width: int = 16) -> None:
        channels = (width, 2 * width, 3 * width)
        super().__init__(_SmallStages(channels), channels, motion, hidden=2 * width)


class _ResNet50Stages(nn.Sequential):
    """Feature maps of stages 2, 3 and 4, under torchvision's names."""

    def __init__(self) -> None:
        *parts, _, _ = resnet50(weights=None).named_children()  # all but pooling and classifier
        super().__init__(OrderedDict(parts))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = [images]
        for part in self:
            maps.append(part(maps[-1]))
        return tuple(maps[-3:])


class _SmallStages(nn.Module):
    """Convolution, BatchNorm, ReLU; twice for the first stage, which halves each side twice."""

    def __init__(self, channels: tuple[int, int, int]) -> None:
        super().__init__()
        first, second, third = channels
        planes = ContrastPlanes()
        self.stages = nn.ModuleList(
            [
                nn.Sequential(planes, *_halve(CONTRAST_PLANES, first), *_halve(first, first)),
                nn.Sequential(*_halve(first, second)),
                nn.Sequential(*_halve(second, third)),
            ]
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps: list[Tensor] = []
        for stage in self.stages:
            maps.append(stage(maps[-1] if maps else images))
        return tuple(maps)


def _halve(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, kernel_size=3, stride=2, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()


def _place_in_trunk(key: str) -> str | Drop:
    if key.startswith("fc."):
        return Drop("the ImageNet classifier: the network ends before it")
    return key if key.startswith("quality.") else f"backbone.{key}"


def _keeps_head(name: str) -> str | None:
    if name.startswith("quality."):
        return "ImageNet files have no quality head"
    return keeps_counts(name)


_TRUNK = ("conv1.weight", "layer4.2.conv3.weight")
_AUTHORS = Format(
    name="SimpleVQA, authors",
    marks=(*_TRUNK, "quality.0.weight"),
    place=_place_in_trunk,
    keeps=keeps_counts,
)
_IMAGENET = Format(
    name="ResNet-50, ImageNet, torchvision", marks=_TRUNK, place=_place_in_trunk, keeps=_keeps_head
)
