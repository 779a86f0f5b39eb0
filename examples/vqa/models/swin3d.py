"""Video Swin-T for fragments: torchvision's, with FAST-VQA's gated bias and adaptive window.

Wu et al. 2022 (FAST-VQA) on Liu et al. 2022 (Video Swin). Fragments are patches from far-apart
places of a frame, side by side; attention should know whether two tokens lie in the same patch.
Blocks of the first three stages therefore own two tables of position biases: R for tokens of
neighbouring fragments and F for tokens of the same one. With G the fragment distance, the bias is

    R * G + F * (1 - G)        same fragment: F, next fragment: R, farther ones: 2 R - F, ...

where the published code, followed here, takes a fragment to be 1/h of the height and 1/w of the
width of the feature map, for a window of h x w tokens. And the window shrinks with the clip.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.swin_transformer import SwinTransformerBlock  # type: ignore[import-untyped]
from torchvision.models.video import SwinTransformer3d  # type: ignore[import-untyped]
from torchvision.models.video.swin_transformer import (  # type: ignore[import-untyped]
    ShiftedWindowAttention3d,
    shifted_window_attention_3d,
)

Size3d = tuple[int, int, int]
"""Time, height, width."""

_WINDOW_FITS: Size3d = (32, 224, 224)  # the clip, in frames and pixels, for the full window


def adaptive_window(window: Size3d, clip: Size3d) -> Size3d:
    """The window, in tokens, for a clip of so many frames and pixels.

    `floor(window * clip / (32, 224, 224))` per axis, at least 1 and at most the full window. (The
    published code has neither limit and cannot run such clips.)

    >>> adaptive_window((8, 7, 7), (16, 224, 112))
    (4, 7, 3)
    """
    time, height, width = (
        min(full, max(1, full * length // fits))
        for full, length, fits in zip(window, clip, _WINDOW_FITS, strict=True)
    )
    return time, height, width


def fragment_distance(
    rows_columns: Sequence[int],
    window: Sequence[int],
    shift: Sequence[int],
    device: torch.device | None = None,
) -> Tensor:
    """G of the gated bias, int64 [H/h * W/w, h * w, h * w], windows and tokens row by row.

    On a map of H x W tokens (`rows_columns`), a multiple of the window of h x w, a token at row r
    belongs to the fragment row `floor(r * h / H)`; the distance of two tokens is that of their
    fragment rows plus that of their fragment columns, whatever their frames. The map is rolled back
    by `shift` before it is cut into windows.
    """
    rows, columns = (
        _distances_along(*axis, device) for axis in zip(rows_columns, window, shift, strict=True)
    )
    distance = rows[:, None, :, None, :, None] + columns[None, :, None, :, None, :]
    return distance.flatten(4, 5).flatten(2, 3).flatten(0, 1)


def _distances_along(length: int, window: int, shift: int, device: torch.device | None) -> Tensor:
    """Fragment distances along one axis, int64 [length / window, window, window]."""
    # Not remembered: computing the distances anew is less than 0.2 % of a block's time.
    fragment = torch.arange(length, device=device) * window // length
    fragment = fragment.roll(-shift).view(-1, window)
    return (fragment[:, :, None] - fragment[:, None, :]).abs()


class FragmentAttention(ShiftedWindowAttention3d):  # type: ignore[misc]  # torchvision is untyped
    """torchvision's attention in shifted windows, with a window of any size and a gated bias."""

    fragment_position_bias_table: nn.Parameter | None

    def define_relative_position_bias_table(self) -> None:
        super().define_relative_position_bias_table()
        self.register_parameter("fragment_position_bias_table", None)

    def define_relative_position_index(self) -> None:
        super().define_relative_position_index()
        # It follows from the window: 14 MB that no checkpoint needs.
        self.register_buffer(
            "relative_position_index", self.relative_position_index, persistent=False
        )

    def add_fragment_table(self) -> None:
        """Own a table F from now on; it starts at zero."""
        table = torch.zeros_like(self.relative_position_bias_table)
        self.fragment_position_bias_table = nn.Parameter(table)

    def forward(self, tokens: Tensor, window: Size3d) -> Tensor:
        """Attend within windows: tokens [B, D, H, W, C] -> the same shape.

        Where the map is smaller than the window, the window is the map's size and not shifted.
        """
        size = tokens.shape[1:4]
        used = [min(pair) for pair in zip(window, size, strict=True)]
        # The shift stays that of the full window, however small the window is.
        shift = [
            step if length > side else 0
            for step, length, side in zip(self.shift_size, size, window, strict=True)
        ]
        attended: Tensor = shifted_window_attention_3d(
            tokens,
            self.qkv.weight,
            self.proj.weight,
            self._bias(tokens, used, shift),
            used,
            self.num_heads,
            shift_size=shift,
            attention_dropout=self.attention_dropout,
            dropout=self.dropout,
            qkv_bias=self.qkv.bias,
            proj_bias=self.proj.bias,
            training=self.training,
        )
        return attended

    def _bias(self, tokens: Tensor, window: list[int], shift: list[int]) -> Tensor:
        """What is added to the logits: [1 or B * windows, heads, N, N], N tokens of a window."""
        relative = self._looked_up(self.relative_position_bias_table, window)
        if self.fragment_position_bias_table is None:
            return relative.flatten(3, 4).flatten(1, 2)[None]
        fragment = self._looked_up(self.fragment_position_bias_table, window)
        clips, *size, _ = tokens.shape
        frames, *covered = (
            math.ceil(length / side) * side for length, side in zip(size, window, strict=True)
        )
        distance = fragment_distance(covered, window[1:], shift[1:], tokens.device)
        # F + G (R - F), for every window at once: it may be as large as the logits themselves.
        distance = distance.to(relative.dtype)[:, None, None, :, None, :]
        distance = distance.expand(clips, frames // window[0], *[-1] * 6)
        gated = torch.addcmul(fragment, distance, relative - fragment)
        return gated.flatten(6, 7).flatten(4, 5).flatten(0, 2)

    def _looked_up(self, table: Tensor, window: list[int]) -> Tensor:
        """A table's bias for each pair of tokens of a window: [heads, d, h * w, d, h * w].

        A smaller window is a corner of the full one, so offsets keep their places in the table.
        """
        time, rows, columns = (slice(side) for side in window)
        index = self.relative_position_index.view(*self.window_size, *self.window_size)
        index = index[time, rows, columns, time, rows, columns]
        index = index.flatten(4, 5).flatten(1, 2)
        return table[index].permute(4, 0, 1, 2, 3).contiguous()


class FragmentBlock(SwinTransformerBlock):  # type: ignore[misc]
    """torchvision's block, told the window at every call."""

    def __init__(self, *arguments: Any, attn_layer: type[nn.Module], **settings: Any) -> None:
        del attn_layer  # torchvision names its own here
        super().__init__(*arguments, attn_layer=FragmentAttention, **settings)

    def forward(self, tokens: Tensor, window: Size3d) -> Tensor:
        """Attention and MLP with residuals: tokens [B, D, H, W, C] -> the same shape."""
        tokens = tokens + self.stochastic_depth(self.attn(self.norm1(tokens), window))
        mixed: Tensor = tokens + self.stochastic_depth(self.mlp(self.norm2(tokens)))
        return mixed


class FragmentSwin3d(SwinTransformer3d):  # type: ignore[misc]
    """Video Swin-T without its classifier: a clip -> features at every location.

    `window`, in tokens, is that for clips of 32 x 224 x 224. With `fragment_tables` the blocks of
    the first three stages have a gated bias. With `checkpoint_activations` each block is computed a
    second time in the backward pass: less memory, more time. In training residual branches are left
    out at random, with probabilities rising linearly from 0 to 0.1 over the 12 blocks.
    """

    def __init__(
        self,
        window: Size3d = (8, 7, 7),
        *,
        fragment_tables: bool = True,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__(
            patch_size=[2, 4, 4],
            embed_dim=96,
            depths=[2, 2, 6, 2],
            num_heads=[3, 6, 12, 24],
            window_size=list(window),
            stochastic_depth_prob=0.1,
            block=FragmentBlock,
        )
        del self.avgpool, self.head
        self.window = window
        self.checkpoint_activations = checkpoint_activations
        for stage in (0, 2, 4) if fragment_tables else ():  # between the stages patches are merged
            for block in self.features[stage]:
                block.attn.add_fragment_table()

    def forward(self, clip: Tensor) -> Tensor:
        """Features [B, 768, T/2, H/32, W/32] (rounded up) of clips, floating [B, 3, T, H, W]."""
        time, height, width = clip.shape[2:]
        window = adaptive_window(self.window, (time, height, width))
        tokens = self.patch_embed(clip)
        for stage in self.features:
            if isinstance(stage, nn.Sequential):
                for block in stage:
                    tokens = self._through(block, tokens, window)
            else:
                tokens = stage(tokens)  # merges 2 x 2 patches
        features: Tensor = self.norm(tokens).permute(0, 4, 1, 2, 3)
        return features

    def _through(self, block: nn.Module, tokens: Tensor, window: Size3d) -> Tensor:
        if self.checkpoint_activations and torch.is_grad_enabled():
            tokens = checkpoint(block, tokens, window, use_reentrant=False)
        else:
            tokens = block(tokens, window)
        return tokens
