"""FAST-VQA, its small variant and SAMA's video model against the published networks."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from published_fill import drawn_as_published, fill, published_input

from torch_awp import AdversarialWeightPerturbation
from vqa.models import build_model, load_published

DATA = Path(__file__).parents[1] / "data"
PUBLISHED = np.load(DATA / "fastvqa_models.npz")
SAMA = np.load(DATA / "sama_vqa_model.npz")
STAGE_ENDS = {
    "patch_embed": "patch_embed",
    "stage0": "features.1",
    "stage1": "features.3",
    "stage2": "features.5",
    "stage3": "features.6.1",
}


def published_model(name, keys):
    model = build_model(name).eval()
    load_published(model, fill(DATA / f"keys_fastvqa_{keys}.json"))
    return model


@pytest.fixture(scope="module")
def fast_vqa():
    return published_model("fast_vqa", "swin_tiny_grpb")


@pytest.fixture(scope="module")
def fast_vqa_m():
    return published_model("fast_vqa_m", "swin_tiny_grpb_m")


@pytest.fixture(scope="module")
def clips16():
    return published_input("fastvqa/x16", (2, 3, 16, 224, 224))


@pytest.fixture(scope="module")
def outputs32(fast_vqa):
    return outputs(fast_vqa, published_input("fastvqa/x32", (1, 3, 32, 224, 224)))


def outputs(model, clips):
    """The score map, the features and what every stage gives, channels first."""
    stages = {}

    def keep(stage):
        return lambda module, inputs, output: stages.update({stage: output.movedim(4, 1)})

    hooks = [
        model.backbone.get_submodule(name).register_forward_hook(keep(stage))
        for stage, name in STAGE_ENDS.items()
    ]
    with torch.no_grad():
        features = model.backbone(clips)
        stages |= {"features": features, "score_map": model.head(features)}
    for hook in hooks:
        hook.remove()
    return stages


def assert_published(found, prefix):
    for stage in STAGE_ENDS:
        assert list(found[stage].shape) == PUBLISHED[f"{prefix}/{stage}_shape"].tolist()
        assert_near(found[stage].flatten()[:32], PUBLISHED[f"{prefix}/{stage}_first32"], 1e-4)
        if stage != "patch_embed":
            values = found[stage].double()
            mean_std = torch.stack([values.mean(), values.std()])
            assert_near(mean_std, PUBLISHED[f"{prefix}/{stage}_mean_std"], 1e-4)
    features = found["features"]
    assert list(features.shape) == PUBLISHED[f"{prefix}/feat_shape"].tolist()
    assert_near(features.flatten()[:64], PUBLISHED[f"{prefix}/feat_first64"], 1e-4)
    assert_near(features.mean((2, 3, 4)), PUBLISHED[f"{prefix}/feat_channel_mean"], 1e-4)
    assert_near(features.mean(), PUBLISHED[f"{prefix}/feat_mean"], 1e-4)
    assert_near(features.std(), PUBLISHED[f"{prefix}/feat_std"], 1e-4)
    assert_near(found["score_map"], PUBLISHED[f"{prefix}/score_map"], 2e-5)
    assert_near(found["score_map"].mean((1, 2, 3, 4)), PUBLISHED[f"{prefix}/score"], 2e-5)


def assert_near(found, expected, tolerance):
    torch.testing.assert_close(
        found, torch.as_tensor(expected), rtol=0, atol=tolerance, check_dtype=False
    )


@pytest.mark.slow
def test_32_frames_are_scored_as_published(outputs32):
    assert_published(outputs32, "grpb_32")


@pytest.mark.slow
def test_16_frames_are_scored_as_published(fast_vqa, clips16):
    assert_published(outputs(fast_vqa, clips16), "grpb_16")


@pytest.mark.slow
def test_sizes_that_need_padding_are_scored_as_published(fast_vqa):
    clips = published_input("fastvqa/xpad", (1, 3, 20, 200, 176))

    assert_published(outputs(fast_vqa, clips), "grpb_pad_20x200x176")


def test_the_small_variant_scores_as_published(fast_vqa_m):
    clips = published_input("fastvqa/xm16", (1, 3, 16, 128, 128))

    assert_published(outputs(fast_vqa_m, clips), "grpb_m_16x128")


@pytest.mark.slow
def test_with_zero_fragment_tables_clips_are_scored_as_published(fast_vqa, clips16):
    model = copy.deepcopy(fast_vqa)
    for name, table in model.named_parameters():
        if name.endswith("fragment_position_bias_table"):
            table.data.zero_()

    with torch.no_grad():
        score_map = model(clips16[:1])

    assert_near(score_map, PUBLISHED["grpb_16_zero_frag_tables/score_map"][:1], 2e-5)


@pytest.mark.slow
def test_in_float64_the_scores_of_the_published_bits_are_the_published_ones(fast_vqa, clips16):
    with torch.no_grad():
        score_map = copy.deepcopy(fast_vqa).double()(clips16[:1].double())

    tolerance = 1e-12 if drawn_as_published() else 1e-5  # the last bits of weights and clips differ
    assert_near(score_map, PUBLISHED["grpb_16/score_map_f64"][:1], tolerance)


@pytest.mark.slow
def test_samas_model_is_fast_vqas(fast_vqa, outputs32):
    score_map = outputs32["score_map"]

    assert type(build_model("sama_vqa")) is type(fast_vqa)
    assert_near(score_map, SAMA["grpb_32/score_map"], 2e-5)
    assert_near(score_map.mean((1, 2, 3, 4)), SAMA["grpb_32/score_eval_mean"], 2e-5)
    summed = score_map.mean((1, 3, 4)).sum(1)
    assert_near(summed, SAMA["grpb_32/score_train_clean_sum_over_time"], 16 * 2e-5)


def test_names_with_weight_are_the_papers_83_of_185_tensors(fast_vqa):
    entries = json.loads((DATA / "keys_fastvqa_swin_tiny_grpb.json").read_text())
    parameters = {key: entry["shape"] for key, entry in entries.items() if entry["param"]}
    theirs = {key for key in parameters if "weight" in key}
    ours = [name for name, _ in fast_vqa.named_parameters() if "weight" in name]
    (place,) = (
        format_.place for format_ in fast_vqa.published_formats if "FAST-VQA" in format_.name
    )

    assert len(parameters) == len(list(fast_vqa.parameters())) == 185
    assert len(theirs) == 83
    assert {place(key) for key in theirs} == set(ours)


def test_the_model_divides_into_backbone_and_head(fast_vqa):
    names = [name for name, _ in fast_vqa.named_children()]

    assert names == ["backbone", "head"]
    assert len(list(fast_vqa.head.parameters())) == 4


def test_gradients_reach_every_parameter():
    model = build_model("fast_vqa").train()

    # At 96 pixels windows of 3 tokens cross the borders of fragments of 8: both tables take part.
    model(torch.randn(2, 3, 8, 96, 96)).square().mean().backward()

    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_the_head_drops_half_of_its_inputs_in_training_only(fast_vqa):
    features = torch.ones(1, 768, 2, 4, 4)
    head, shares = copy.deepcopy(fast_vqa.head), []
    head.hidden.register_forward_hook(
        lambda layer, inputs, output: shares.append((inputs[0] == 0).double().mean().item())
    )

    head.train()(features)
    head.eval()(features)

    assert shares == [pytest.approx(0.5, abs=0.02), 0]  # six deviations of 24,576 draws


@pytest.mark.parametrize("shape", [(3, 16, 64, 64), (1, 1, 16, 64, 64)], ids=str)
def test_clips_of_another_shape_are_an_error(fast_vqa, shape):
    with pytest.raises(ValueError, match=r"clips: expected shape \[B, 3, T, H, W\], got"):
        fast_vqa(torch.zeros(shape))


def test_an_adversarial_step_moves_names_with_weight_and_gives_all_back():
    # Checkpointed blocks run again in the backward pass, while the weights are perturbed.
    model = build_model("fast_vqa", checkpoint_activations=True).train()
    optimizer = AdversarialWeightPerturbation(
        torch.optim.AdamW(model.named_parameters(), lr=1e-3),
        gamma=1e-4,
        constraint="element",
        select=lambda name, parameter: "weight" in name,
    )
    clips, scores = torch.randn(2, 3, 16, 32, 32), torch.tensor([1.0, 3.0])

    def backward():
        optimizer.zero_grad()
        (model(clips).mean((1, 2, 3, 4)) - scores).square().mean().backward()

    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    backward()
    with optimizer.perturb():
        moved = {name for name, p in model.named_parameters() if not p.equal(before[name])}
        backward()
    after = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer.step()

    assert moved == {name for name in before if "weight" in name}
    assert all(after[name].equal(before[name]) for name in before)
    assert not any(parameter.equal(before[name]) for name, parameter in model.named_parameters())
