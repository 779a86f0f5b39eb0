"""FAST-VQA (Wu et al. 2022): fragments -> Video Swin-T with gated bias -> a score per location."""

import re
from collections import OrderedDict

import torch
from torch import Tensor, nn

from vqa.models.published import Drop, Format
from vqa.models.swin3d import FragmentSwin3d, Size3d


class FastVqa(nn.Module):
    """FAST-VQA with Video Swin-T; its mean score is the clip's. SAMA's video model is the same.

    Made for fragments of 32 x 224 x 224; 16 frames and other sizes work, the window adapts.
    """

    def __init__(
        self,
        window: Size3d = (8, 7, 7),
        *,
        fragment_tables: bool = True,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = FragmentSwin3d(
            window, fragment_tables=fragment_tables, checkpoint_activations=checkpoint_activations
        )
        layers = OrderedDict(
            dropout_1=nn.Dropout(0.5),
            hidden=nn.Conv3d(self.backbone.num_features, 64, kernel_size=1),
            activation=nn.GELU(),
            dropout_2=nn.Dropout(0.5),
            score=nn.Conv3d(64, 1, kernel_size=1),
        )
        self.head = nn.Sequential(layers)

    @property
    def published_formats(self) -> tuple[Format, ...]:
        return (_AUTHORS, _KINETICS, _TORCHVISION)

    def forward(self, clips: Tensor) -> Tensor:
        """Score maps [B, 1, T/2, H/32, W/32] (rounded up) of normalised clips [B, 3, T, H, W]."""
        if clips.ndim != 5 or clips.shape[1] != 3:
            raise ValueError(f"clips: expected shape [B, 3, T, H, W], got {list(clips.shape)}")
        scores: Tensor = self.head(self.backbone(clips))
        return scores


class FastVqaM(FastVqa):
    """The small variant: no fragment tables, window (4, 4, 4), made for clips of 16 x 128 x 128.

    There the adaptive window, as published, is (2, 2, 2) and the shift (2, 2, 2): a whole window,
    so that within a stage no information crosses the borders of windows.
    """

    def __init__(self, *, checkpoint_activations: bool = False) -> None:
        super().__init__(
            (4, 4, 4), fragment_tables=False, checkpoint_activations=checkpoint_activations
        )


class TinyFastVqa(nn.Module):
    """A FAST-VQA of some ten thousand parameters: a score at every location, their mean counts.

    Three convolutions look around in space and shrink each side eightfold, a fourth mixes
    neighbouring frames. `width` is a multiple of 4.
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
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding)
    return convolution, nn.GroupNorm(4, outputs), nn.GELU()


# By the last part of their keys.
_DERIVED = {
    "relative_position_index": Drop("position index, follows from the window"),
    "attn_mask": Drop("shift mask, follows from the size of the clip"),
}
_BLOCK = re.compile(r"layers\.(\d)\.blocks\.(\d)\.(.+)")
_MERGING = re.compile(r"layers\.(\d)\.downsample\.(.+)")


def _place_authors(key: str) -> str | Drop:
    if key.startswith("vqa_head."):
        layer = key.replace("vqa_head.fc_hid.", "head.hidden.")
        return layer.replace("vqa_head.fc_last.", "head.score.")
    return _place_backbone(key.removeprefix("fragments_"))


def _place_kinetics(key: str) -> str | Drop:
    """Of the authors' files and torchvision's, whose classifiers are called so."""
    if key.startswith(("cls_head.", "head.")):
        return Drop("classifier of Kinetics-400")
    return _place_backbone(key)


def _place_backbone(key: str) -> str | Drop:
    """Names of the authors' Video Swin -> torchvision's, which count stages and mergings as one."""
    inner = key.removeprefix("backbone.")
    if block := _BLOCK.fullmatch(inner):
        stage, number, leaf = block.groups()
        leaf = leaf.replace("mlp.fc1.", "mlp.0.").replace("mlp.fc2.", "mlp.3.")
        inner = f"features.{2 * int(stage)}.{number}.{leaf}"
    elif merging := _MERGING.fullmatch(inner):
        inner = f"features.{2 * int(merging[1]) + 1}.{merging[2]}"
    return _DERIVED.get(key.rpartition(".")[2]) or f"backbone.{inner}"


def _keeps_of_kinetics(name: str) -> str | None:
    if name.startswith("head."):
        return "Kinetics-400 files have no quality head"
    if name.endswith("fragment_position_bias_table"):
        return "Kinetics-400 files have no fragment tables"
    return None


def _relative_table(name: str) -> str | None:
    """The relative table of the same block."""
    theirs = name.replace("fragment_position_bias_table", "relative_position_bias_table")
    return theirs if theirs != name else None


_AUTHORS = Format(name="FAST-VQA or SAMA, authors", marks=("vqa_head.",), place=_place_authors)
_KINETICS = Format(
    name="Video Swin, Kinetics-400, authors",
    marks=("backbone.layers.",),
    place=_place_kinetics,
    keeps=_keeps_of_kinetics,
    copies=_relative_table,
)
_TORCHVISION = Format(
    name="Video Swin, Kinetics-400, torchvision",
    marks=("features.",),
    place=_place_kinetics,
    keeps=_keeps_of_kinetics,
    copies=_relative_table,
)
