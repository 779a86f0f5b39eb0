"""SAMA for images: the published numbers, and weights in every naming that people have."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from published_fill import fill, published_input
from torchvision.models import swin_v2_t

from vqa.models import PublishedWeightsError, build_model, load_published

DATA = Path(__file__).parents[1] / "data"
PUBLISHED = np.load(DATA / "sama_iqa_model.npz")
KEYS = DATA / "keys_sama_iqa_swinv2.json"


@pytest.fixture(scope="module")
def authors_model():
    model = build_model("sama_iqa").eval()
    return model, load_published(model, fill(KEYS))


@pytest.fixture(scope="module")
def blank_model():
    """For weights to be loaded into; drawing 28 million random numbers takes a while."""
    return build_model("sama_iqa", drop_path=0.0).eval()


@pytest.fixture(scope="module")
def images():
    return published_input("samaiqa/x", (2, 3, 256, 256))


@pytest.fixture(scope="module")
def token_scores(authors_model, images):
    with torch.no_grad():
        return authors_model[0](images)


def test_token_scores_are_the_published_ones(token_scores):
    np.testing.assert_allclose(token_scores, PUBLISHED["x256/token_scores"][..., 0], atol=1e-5)


def test_the_mean_of_the_token_scores_is_the_published_score(token_scores):
    np.testing.assert_allclose(token_scores.mean(1), PUBLISHED["x256/score"], atol=1e-5)
    np.testing.assert_allclose(token_scores.mean(1), PUBLISHED["x256/score_f64"], atol=1e-5)


def test_the_authors_file_fills_every_tensor_and_only_its_classifier_is_left_out(authors_model):
    model, report = authors_model

    assert set(report.loaded) == set(model.state_dict())
    assert sorted(report.dropped) == ["backbone.head.bias", "backbone.head.weight"]
    assert not report.kept


def test_the_paper_perturbs_all_its_tensors_but_the_unused_classifier(authors_model):
    model, _ = authors_model
    theirs = [key for key in fill(KEYS) if "weight" in key]

    ours = [name for name, _ in model.named_parameters() if "weight" in name]

    assert len(ours) == len(theirs) - 1 == 107


def test_every_parameter_gets_a_gradient(blank_model):
    blank_model(probe()).mean().backward()

    assert all(parameter.grad is not None for parameter in blank_model.parameters())


def test_imagenet_weights_of_timm_give_its_features(blank_model):
    source = timm.create_model("swinv2_tiny_window8_256", pretrained=False).eval()

    features, report = features_after_loading(blank_model, source.state_dict())

    assert "timm" in report.format
    assert_only_the_head_is_kept(report)
    torch.testing.assert_close(features, source.forward_features(probe()), rtol=0, atol=0)


def test_imagenet_weights_of_torchvision_give_its_features(blank_model):
    source = swin_v2_t(weights=None).eval()
    for block in (part for part in source.modules() if hasattr(part, "qkv")):
        torch.nn.init.normal_(block.qkv.bias)  # constructed as zero, which would hide a mix-up

    features, report = features_after_loading(blank_model, source.state_dict())

    assert "torchvision" in report.format
    assert_only_the_head_is_kept(report)
    torch.testing.assert_close(features, source.norm(source.features(probe())))


def test_imagenet_weights_of_microsoft_give_the_features_of_the_authors_backbone(
    authors_model, blank_model
):
    backbone = {
        key.removeprefix("backbone."): tensor
        for key, tensor in fill(KEYS).items()
        if key.startswith("backbone.")
    }

    features, report = features_after_loading(blank_model, {"model": backbone})

    assert "Microsoft" in report.format
    assert_only_the_head_is_kept(report)
    torch.testing.assert_close(features, authors_model[0].backbone(probe()))


def test_position_tables_of_other_files_are_left_out(blank_model):
    weights = dict(blank_model.backbone.state_dict())
    weights["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(64, 64)

    report = load_published(blank_model, weights)

    assert list(report.dropped) == ["layers.0.blocks.0.attn.relative_position_index"]


def test_its_own_state_dict_loads_completely(authors_model, blank_model):
    model, _ = authors_model

    report = load_published(blank_model, model.state_dict())

    assert set(report.loaded) == set(model.state_dict())


def test_a_file_of_a_deeper_swin_is_an_error(blank_model):
    weights = dict(blank_model.backbone.state_dict())
    weights["layers.2.blocks.6.norm1.weight"] = torch.ones(384)

    with pytest.raises(PublishedWeightsError, match=r"1 unknown: backbone\.layers\.2\.blocks\.6"):
        load_published(blank_model, weights)


def test_images_of_another_size_are_an_error(blank_model):
    with pytest.raises(ValueError, match=r"images: expected \[B, 3, 256, 256\], got \[1, 3, 224"):
        blank_model(torch.zeros(1, 3, 224, 224))


@pytest.mark.parametrize("size", [96, 128])
def test_the_small_one_scores_a_token_for_every_eight_pixels(size):
    model = build_model("tiny_sama_iqa", width=8)

    assert model(torch.zeros(2, 3, size, size)).shape == (2, (size // 8) ** 2)


def test_a_token_of_the_small_one_sees_its_surroundings_only():
    model = build_model("tiny_sama_iqa", width=8, dropout=0.0)
    # In training the norms look at the whole image: far tokens would move with the rest of it.
    without_norm = torch.nn.Sequential(
        *(part for part in model.backbone if not isinstance(part, torch.nn.BatchNorm2d))
    )
    model.backbone = without_norm
    model = model.double()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    changed = images.clone()
    changed[:, :, :8, :8] += 1

    moved = (model(changed) - model(images)).abs().view(8, 8) > 1e-10

    assert moved[0, 0]
    assert not moved[3:].any()
    assert not moved[:, 3:].any()


def probe():
    return torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def features_after_loading(model, weights):
    report = load_published(model, weights)
    return model.backbone(probe()), report


def assert_only_the_head_is_kept(report):
    assert set(report.kept) == {
        f"vqa_head.{layer}.{kind}" for layer in ("fc1", "fc2") for kind in ("weight", "bias")
    }
