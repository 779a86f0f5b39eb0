"""SAMA for images (Liu et al. 2024): Swin V2-T with a quality score for every token."""

import re
from collections import OrderedDict
from collections.abc import Mapping

import timm
from torch import Tensor, nn

from vqa.models.published import Drop, Format
from vqa.models.quality_planes import CONTRAST_PLANES, ContrastPlanes

_SIZE = 256


class SamaIqa(nn.Module):
    """Swin V2-T on masked fragments -> a score at each of 8 x 8 tokens; their mean is the image's.

    The probability of leaving out a residual branch rises linearly from 0 to `drop_path` over the
    blocks; `dropout` is that of dropping an input of either layer of the head.
    """

    def __init__(self, drop_path: float = 0.2, dropout: float = 0.5) -> None:
        super().__init__()
        self.backbone = timm.create_model(
            "swinv2_tiny_window8_256",
            pretrained=False,
            num_classes=0,
            global_pool="",
            drop_path_rate=drop_path,
        )
        self.vqa_head = _token_head(768, 64, dropout)

    @property
    def published_formats(self) -> tuple[Format, ...]:
        return (_AUTHORS, _MICROSOFT, _TIMM, _TORCHVISION)

    def forward(self, images: Tensor) -> Tensor:
        """Token scores [B, 64], row by row, of ImageNet-normalised images [B, 3, 256, 256]."""
        if images.ndim != 4 or images.shape[1:] != (3, _SIZE, _SIZE):
            raise ValueError(f"images: expected [B, 3, {_SIZE}, {_SIZE}], got {list(images.shape)}")
        tokens: Tensor = self.backbone(images)
        scores: Tensor = self.vqa_head(tokens.flatten(1, 2))
        return scores.squeeze(2)


class TinySamaIqa(nn.Module):
    """The same on three convolutions of 1, 2 and 3 times `width` channels, for CPUs."""

    def __init__(self, width: int = 16, dropout: float = 0.1) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            ContrastPlanes(),
            *_halve(CONTRAST_PLANES, width),
            *_halve(width, 2 * width),
            *_halve(2 * width, 3 * width),
        )
        self.vqa_head = _token_head(3 * width, width, dropout)

    def forward(self, images: Tensor) -> Tensor:
        """Token scores [B, H / 8 * W / 8], row by row, of images [B, 3, H, W]."""
        tokens: Tensor = self.backbone(images)
        scores: Tensor = self.vqa_head(tokens.flatten(2).transpose(1, 2))
        return scores.squeeze(2)


def _token_head(inputs: int, hidden: int, dropout: float) -> nn.Module:
    """Scores [B, N, 1] of tokens [B, N, C], each by itself."""
    layers = OrderedDict(
        dropout_1=nn.Dropout(dropout),
        fc1=nn.Linear(inputs, hidden),
        activation=nn.GELU(),
        dropout_2=nn.Dropout(dropout),
        fc2=nn.Linear(hidden, 1),
    )
    return nn.Sequential(layers)


def _halve(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, kernel_size=3, stride=2, padding=1)
    # Not GroupNorm: an image's own statistics are what tells its quality.
    return convolution, nn.BatchNorm2d(outputs), nn.GELU()


def _split_biases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Torchvision's bias of query, key and value as the two that act: the key's is set to zero."""
    split: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if key.endswith("attn.qkv.bias"):
            query, _, value = tensor.chunk(3)
            block = key.removesuffix("qkv.bias")
            split |= {f"{block}q_bias": query, f"{block}v_bias": value}
        else:
            split[key] = tensor
    return split


_STEM_OF_TORCHVISION = {"0.0": "patch_embed.proj", "0.2": "patch_embed.norm"}


def _place_torchvision(key: str) -> str | Drop:
    """Stages and mergings are numbered as one sequence there: stage i is `features.{2 i + 1}`."""
    if not key.startswith("features."):
        return _place_timm(key)
    layer, _, leaf = key.removeprefix("features.").rpartition(".")
    if layer in _STEM_OF_TORCHVISION:
        return f"backbone.{_STEM_OF_TORCHVISION[layer]}.{leaf}"
    _, number, rest = key.split(".", 2)
    rest = rest.replace(".mlp.0.", ".mlp.fc1.").replace(".mlp.3.", ".mlp.fc2.")
    stage, is_block = divmod(int(number), 2)
    part = f"blocks.{rest}" if is_block else f"downsample.{rest}"
    return _place_timm(f"layers.{stage}.{part}")


def _place_microsoft(key: str) -> str | Drop:
    """Patch merging ends a stage there; timm begins the next one with it."""
    merging = re.fullmatch(r"layers\.(\d)\.downsample\.(.+)", key)
    if merging is None:
        return _place_timm(key)
    return f"backbone.layers.{int(merging[1]) + 1}.downsample.{merging[2]}"


def _place_timm(key: str) -> str | Drop:
    if key.startswith("head."):
        return Drop("the ImageNet classifier: the tokens are scored before it")
    if key.rpartition(".")[2] in ("relative_coords_table", "relative_position_index", "attn_mask"):
        return Drop("follows from the sizes alone and is computed when the model is built")
    return f"backbone.{key}"


def _place_authors(key: str) -> str | Drop:
    inner = key.removeprefix("backbone.")
    return key if inner == key else _place_microsoft(inner)


def _keeps_head(name: str) -> str | None:
    return "ImageNet files have no quality head" if name.startswith("vqa_head.") else None


_AUTHORS = Format(
    name="SAMA for images, authors",
    marks=("backbone.layers.0.downsample.norm.weight",),
    place=_place_authors,
)
_MICROSOFT = Format(
    name="Swin V2-T, ImageNet, Microsoft",
    marks=("layers.0.downsample.norm.weight",),
    place=_place_microsoft,
    keeps=_keeps_head,
)
_TIMM = Format(
    name="Swin V2-T, ImageNet, timm",
    marks=("layers.3.downsample.norm.weight",),
    place=_place_timm,
    keeps=_keeps_head,
)
_TORCHVISION = Format(
    name="Swin V2-T, ImageNet, torchvision",
    marks=("features.1.0.attn.cpb_mlp.0.weight",),
    convert=_split_biases,
    place=_place_torchvision,
    keeps=_keeps_head,
)
