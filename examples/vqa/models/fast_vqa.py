"""FAST-VQA (Wu et al. 2022): fragments -> Video Swin-T with gated bias -> a score per location."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from vqa.models.formats import Drop, Format
from vqa.models.swin3d import FragmentSwin3d, Size3d


class FastVqa(nn.Module):
    """FAST-VQA with Video Swin-T; its mean score is the clip's. SAMA's video model is the same.

    Made for fragments of 32 x 224 x 224; 16 frames and other sizes work, the window adapts.

    Args:
        window: attention window in tokens, for clips of 32 x 224 x 224.
        fragment_tables: whether position biases depend on the distance of the fragments.
        checkpoint_activations: compute each block a second time in the backward pass instead of
            keeping what it computed: less memory, more time.
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
            window,
            fragment_tables=fragment_tables,
            checkpoint_activations=checkpoint_activations,
        )
        self.head = ScoreHead(self.backbone.num_features)

    @property
    def published_formats(self) -> tuple[Format, ...]:
        """The authors' FAST-VQA and SAMA, and Video Swin-T for Kinetics-400 from two sources."""
        return (_AUTHORS, _KINETICS, _TORCHVISION)

    def forward(self, clips: Tensor) -> Tensor:
        """Score maps [B, 1, T/2, H/32, W/32] (rounded up) of normalised clips [B, 3, T, H, W].

        Raises:
            ValueError: clips of another shape.
        """
        if clips.ndim != 5 or clips.shape[1] != 3:
            raise ValueError(f"clips: expected shape [B, 3, T, H, W], got {list(clips.shape)}")
        scores: Tensor = self.head(self.backbone(clips))
        return scores


class FastVqaM(FastVqa):
    """The small variant: no fragment tables, window (4, 4, 4), made for clips of 16 x 128 x 128.

    There the adaptive window, as published, is (2, 2, 2) and the shift (2, 2, 2): a whole window,
    so that within a stage no information crosses the borders of windows.

    Args:
        checkpoint_activations: as in `FastVqa`.
    """

    def __init__(self, *, checkpoint_activations: bool = False) -> None:
        super().__init__(
            (4, 4, 4), fragment_tables=False, checkpoint_activations=checkpoint_activations
        )


class ScoreHead(nn.Module):
    """A score at every location from the features there, with a hidden layer of 64."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.hidden = nn.Conv3d(features, 64, kernel_size=1)
        self.score = nn.Conv3d(64, 1, kernel_size=1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, features: Tensor) -> Tensor:
        """Scores [B, 1, D, H, W] of features [B, C, D, H, W]."""
        hidden = nn.functional.gelu(self.hidden(self.dropout(features)))
        scores: Tensor = self.score(self.dropout(hidden))
        return scores


_POSITION_INDEX = Drop("position index, follows from the window")
_SHIFT_MASK = Drop("shift mask, follows from the size of the clip")
_CLASSIFIER = Drop("classifier of Kinetics-400")
_HEAD = {
    "vqa_head.fc_hid.": "head.hidden.",
    "vqa_head.fc_last.": "head.score.",
}
_BLOCK = re.compile(r"layers\.(\d)\.blocks\.(\d)\.(.+)")
_MERGING = re.compile(r"layers\.(\d)\.downsample\.(.+)")


def _place_authors(key: str) -> str | Drop:
    for theirs, ours in _HEAD.items():
        if key.startswith(theirs):
            return key.replace(theirs, ours)
    return _place_backbone(key.removeprefix("fragments_"))


def _place_kinetics(key: str) -> str | Drop:
    return _CLASSIFIER if key.startswith("cls_head.") else _place_backbone(key)


def _place_torchvision(key: str) -> str | Drop:
    return _CLASSIFIER if key.startswith("head.") else _derived(key) or f"backbone.{key}"


def _place_backbone(key: str) -> str | Drop:
    """Names of the authors' Video Swin -> torchvision's, which count stages and mergings as one."""
    inner = key.removeprefix("backbone.")
    if block := _BLOCK.fullmatch(inner):
        stage, number, leaf = block.groups()
        leaf = leaf.replace("mlp.fc1.", "mlp.0.").replace("mlp.fc2.", "mlp.3.")
        inner = f"features.{2 * int(stage)}.{number}.{leaf}"
    elif merging := _MERGING.fullmatch(inner):
        inner = f"features.{2 * int(merging[1]) + 1}.{merging[2]}"
    return _derived(key) or f"backbone.{inner}"


def _derived(key: str) -> Drop | None:
    last = key.rpartition(".")[2]
    return {"relative_position_index": _POSITION_INDEX, "attn_mask": _SHIFT_MASK}.get(last)


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


def _begins(*prefixes: str) -> Callable[[Mapping[str, Tensor]], bool]:
    """Whether a file has, for each prefix, a key that begins so."""
    return lambda tensors: all(
        any(key.startswith(prefix) for key in tensors) for prefix in prefixes
    )


_AUTHORS = Format(
    name="FAST-VQA or SAMA, authors",
    recognises=_begins("vqa_head."),
    place=_place_authors,
)
_KINETICS = Format(
    name="Video Swin, Kinetics-400, authors",
    recognises=_begins("backbone.layers."),
    place=_place_kinetics,
    keeps=_keeps_of_kinetics,
    copies=_relative_table,
)
_TORCHVISION = Format(
    name="Video Swin, Kinetics-400, torchvision",
    recognises=_begins("features."),
    place=_place_torchvision,
    keeps=_keeps_of_kinetics,
    copies=_relative_table,
)
