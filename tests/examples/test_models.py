"""The small FAST-VQA."""

import pytest
import torch

from vqa.models import build_model


def test_a_score_is_the_mean_of_the_clips_score_map():
    model = build_model("tiny_fast_vqa", width=8)
    fragments = torch.randn(2, 3, 4, 48, 48)

    score_map = model.score_map(fragments)

    assert score_map.shape == (2, 4, 6, 6)
    torch.testing.assert_close(model(fragments), score_map.mean(dim=(1, 2, 3)))


def test_clips_of_a_batch_do_not_influence_each_other():
    model = build_model("tiny_fast_vqa", width=8)
    fragments = torch.randn(3, 3, 4, 48, 48)

    together, alone = model(fragments), torch.cat([model(clip[None]) for clip in fragments])

    torch.testing.assert_close(together, alone)


def test_a_location_sees_its_own_and_the_neighbouring_frames_only():
    model = build_model("tiny_fast_vqa", width=8).double()
    fragments = torch.randn(1, 3, 4, 48, 48, dtype=torch.float64)
    changed = fragments.clone()
    changed[:, :, 3] += 1

    difference = (model.score_map(changed) - model.score_map(fragments)).abs().amax(dim=(0, 2, 3))

    assert difference[:2].max() < 1e-10
    assert difference[2:].min() > 1e-4


def test_the_order_of_frames_matters():
    model = build_model("tiny_fast_vqa", width=8)
    fragments = torch.randn(1, 3, 4, 48, 48)

    assert not torch.allclose(model(fragments), model(fragments[:, :, [0, 2, 1, 3]]))


def test_an_unknown_model_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match=r"expected one of .*tiny_fast_vqa.*, got 'slow_vqa'"):
        build_model("slow_vqa")
