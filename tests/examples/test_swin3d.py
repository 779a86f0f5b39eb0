"""Video Swin-T for fragments against the published gate, torchvision and its own promises."""

import copy
import math
import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode
from torchvision.models.video import swin3d_t

from vqa.models.swin3d import (
    FragmentAttention,
    FragmentBlock,
    FragmentSwin3d,
    adaptive_window,
    fragment_distance,
)

GATE = np.load(Path(__file__).parents[1] / "data" / "fastvqa_gate.npz")
GEOMETRIES = sorted({key.rpartition("/")[0] for key in GATE.files})


@pytest.fixture(scope="module")
def backbone():
    return FragmentSwin3d().eval()


@pytest.fixture(scope="module")
def small_window():
    return FragmentSwin3d((4, 4, 4), fragment_tables=False).eval()


class Logits(TorchFunctionMode):
    """Records what reaches a softmax."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.nn.functional.softmax:
            self.seen = args[0]
        return function(*args, **(kwargs or {}))


def gate_and_mask(geometry):
    """What a block adds to its attention logits where R is one and F is zero: G and the mask."""
    size, window, shift = (
        [int(n) for n in part.strip("ws").split("-")] for part in split(geometry)
    )
    attention = FragmentAttention(1, [8, 7, 7], [4, 3, 3] if any(shift) else [0, 0, 0], 1)
    attention.add_fragment_table()
    with torch.no_grad(), Logits() as logits:
        attention.relative_position_bias_table.fill_(1)
        attention.qkv.weight.zero_()
        attention(torch.zeros(1, *size, 1), tuple(window))
    masked = logits.seen[:, 0] < -50
    return (logits.seen[:, 0] + 100 * masked).int().numpy(), masked.numpy()


def split(geometry):
    size, window, shift = geometry.split("_")
    return size.replace("x", "-"), window, shift


def crc32(array, dtype):
    return zlib.crc32(np.ascontiguousarray(array, dtype=dtype).tobytes())


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_gate_and_the_shift_mask_are_the_published_ones(geometry):
    gate, masked = gate_and_mask(geometry)

    assert list(gate.shape) == GATE[f"{geometry}/shape"].tolist()
    assert gate.sum((1, 2)).tolist() == GATE[f"{geometry}/per_window_sum"].tolist()
    assert crc32(gate, np.int32) == GATE[f"{geometry}/crc32_int32"]
    assert masked.sum() == GATE[f"{geometry}/attn_mask_neg100_count"]
    assert crc32(masked, np.uint8) == GATE[f"{geometry}/attn_mask_crc32_bool"]


def test_fragment_distance_counts_rows_and_columns_between_fragments():
    distance = fragment_distance((4, 4), window=(4, 4), shift=(0, 0))[0].view(4, 4, 4, 4)

    assert distance[0, 0].tolist() == [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 6]]


@pytest.mark.parametrize(
    ("full", "clip", "expected"),
    [
        ((8, 7, 7), (32, 224, 224), (8, 7, 7)),
        ((8, 7, 7), (16, 224, 224), (4, 7, 7)),
        ((8, 7, 7), (20, 200, 176), (5, 6, 5)),
        ((4, 4, 4), (16, 128, 128), (2, 2, 2)),
        ((8, 7, 7), (64, 448, 448), (8, 7, 7)),
        ((8, 7, 7), (2, 16, 16), (1, 1, 1)),
    ],
    ids=str,
)
def test_the_window_shrinks_with_the_clip(full, clip, expected):
    assert adaptive_window(full, clip) == expected


@pytest.mark.slow
def test_with_equal_tables_it_is_torchvisions_network():
    ours, theirs = FragmentSwin3d().eval().double(), swin3d_t().eval().double()
    theirs.avgpool, theirs.head = torch.nn.Identity(), torch.nn.Identity()
    ours.load_state_dict(theirs.state_dict(), strict=False)
    for block in (module for module in ours.modules() if isinstance(module, FragmentAttention)):
        table = torch.randn_like(block.relative_position_bias_table)
        block.relative_position_bias_table.data.copy_(table)
        if block.fragment_position_bias_table is not None:
            block.fragment_position_bias_table.data.copy_(table)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    # At 4 frames torchvision's window is 2 x 7 x 7: the map's frames.
    clip = torch.randn(1, 3, 4, 224, 224, dtype=torch.float64)

    with torch.no_grad():
        tokens = ours.patch_embed(clip)
        for stage in ours.features:
            blocks = isinstance(stage, torch.nn.Sequential)
            for block in stage if blocks else ():
                tokens = block(tokens, (8, 7, 7))
            tokens = tokens if blocks else stage(tokens)
        expected = theirs(clip).view(1, 768, 2, 7, 7)

    found = ours.norm(tokens).permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_branches_are_left_out_with_probabilities_rising_from_0_to_a_tenth(backbone):
    blocks = [module for module in backbone.modules() if isinstance(module, FragmentBlock)]

    assert [block.stochastic_depth.p for block in blocks] == pytest.approx(
        [0.1 * number / 11 for number in range(12)]
    )


def test_ten_blocks_own_fragment_tables_that_start_at_zero(backbone):
    tables = {
        name: table
        for name, table in backbone.named_parameters()
        if "fragment_position_bias_table" in name
    }

    assert [name[:12] for name in tables] == [
        f"features.{2 * stage}.{block}"
        for stage, blocks in enumerate((2, 2, 6))
        for block in range(blocks)
    ]
    assert not any(table.any() for table in tables.values())


@settings(max_examples=8, derandomize=True)
@given(time=st.integers(1, 9), height=st.integers(4, 70), width=st.integers(4, 70), m=st.booleans())
def test_clips_of_any_size_have_features_at_every_location(
    backbone, small_window, time, height, width, m
):
    model = small_window if m else backbone

    with torch.no_grad():
        features = model(torch.randn(1, 3, time, height, width))

    assert features.shape == (
        1,
        768,
        math.ceil(time / 2),
        math.ceil(height / 32),
        math.ceil(width / 32),
    )
    assert features.isfinite().all()


def test_clips_of_a_batch_do_not_influence_each_other(backbone):
    clips = torch.randn(3, 3, 4, 64, 96)

    with torch.no_grad():
        together = backbone(clips)
        alone = torch.cat([backbone(clip[None]) for clip in clips])

    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_copies_and_pickles_compute_the_same(backbone):
    clip = torch.randn(1, 3, 4, 64, 64)
    expected = backbone(clip)

    assert copy.deepcopy(backbone)(clip).equal(expected)
    assert pickle.loads(pickle.dumps(backbone))(clip).equal(expected)


def test_its_state_is_its_parameters(backbone):
    assert backbone.state_dict().keys() == dict(backbone.named_parameters()).keys()


def test_bfloat16_weights_and_autocast_stay_near_float32(backbone):
    clip = torch.randn(1, 3, 4, 64, 64)
    with torch.no_grad():
        exact = backbone(clip)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = backbone(clip)
        low = copy.deepcopy(backbone).bfloat16()(clip.bfloat16())

    assert low.dtype == torch.bfloat16
    for features in (mixed, low):
        assert (features.float() - exact).square().mean().sqrt() < 0.05


def test_checkpointed_activations_give_the_same_gradients_in_training():
    plain = FragmentSwin3d().train()
    checkpointed = FragmentSwin3d(checkpoint_activations=True).train()
    checkpointed.load_state_dict(plain.state_dict())
    clip = torch.randn(2, 3, 2, 32, 32)

    for model in (plain, checkpointed):
        torch.manual_seed(1)
        model(clip)[:, :99].sum().backward()

    for name, parameter in plain.named_parameters():
        assert checkpointed.get_parameter(name).grad.equal(parameter.grad), name
