"""SimpleVQA: the published numbers, pooling, and the weights that people have."""

from pathlib import Path

import numpy as np
import pytest
import torch
from published_fill import fill, published_input
from tiers import first_fast
from torchvision.models import resnet50

from vqa.models import PublishedWeightsError, build_model, load_published
from vqa.models.simple_vqa import FrameScorer

DATA = Path(__file__).parents[1] / "data"
PUBLISHED = np.load(DATA / "simplevqa_model.npz")
KEYS = DATA / "keys_simplevqa_resnet50.json"
INPUTS = {"x448": (1, 2, 3, 448, 448), "x224": (2, 8, 3, 224, 224)}


@pytest.fixture(scope="module")
def authors_model():
    model = build_model("simple_vqa").eval()
    return model, load_published(model, fill(KEYS))


@pytest.fixture(scope="module", params=first_fast(INPUTS))
def published(request, authors_model):
    """What the model makes of one of the published inputs: name, motion, features, scores."""
    name, shape = request.param, INPUTS[request.param]
    frames = published_input(f"simplevqa/{name}", shape)
    motion = published_input(f"simplevqa/{name}/feat3d", (*shape[:2], 2304))
    model, _ = authors_model
    with torch.no_grad():
        features = model.features(frames)
        # Keep the trunk from running twice: it is most of the cost.
        model.features = lambda frames: features
        try:
            return name, motion, features, model.frame_scores(frames, motion), model(frames, motion)
        finally:
            del model.features


def test_scores_are_the_published_ones(published):
    name, _, _, frame_scores, scores = published

    np.testing.assert_allclose(frame_scores, PUBLISHED[f"{name}/per_frame_score"], rtol=1e-5)
    np.testing.assert_allclose(scores, PUBLISHED[f"{name}/score"], rtol=1e-5)


def test_features_stand_in_the_published_order(published):
    name, motion, features, _, _ = published

    first = torch.cat([features, motion], dim=2)[0, 0]

    np.testing.assert_allclose(first, PUBLISHED[f"{name}/frame0_features"], rtol=1e-5, atol=1e-5)


def test_the_authors_file_fills_every_tensor(authors_model):
    model, report = authors_model
    counts = {name for name in model.state_dict() if name.endswith("num_batches_tracked")}

    assert set(report.loaded) == set(model.state_dict()) - counts
    assert set(report.kept) == counts
    assert not report.dropped


def test_the_paper_perturbs_108_of_163_tensors(authors_model):
    names = [name for name, _ in authors_model[0].named_parameters()]

    assert (len(names), sum("weight" in name for name in names)) == (163, 108)


def test_imagenet_weights_fill_the_trunk_and_leave_the_head():
    model, source = build_model("simple_vqa").eval(), resnet50(weights=None).eval()
    torch.nn.init.normal_(source.layer4[2].bn3.running_mean)

    report = load_published(model, source.state_dict())

    assert sorted(report.dropped) == ["fc.bias", "fc.weight"]
    assert set(report.kept) == {
        f"quality.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")
    }
    images = torch.randn(1, 3, 64, 64)
    source.fc = torch.nn.Identity()
    mean_of_last_stage = model.features(images[:, None])[0, 0, -4096:-2048]
    torch.testing.assert_close(mean_of_last_stage, source(images)[0])


def test_a_file_without_a_tensor_is_an_error_that_names_it():
    weights = fill(KEYS)
    del weights["layer3.5.conv2.weight"]

    with pytest.raises(PublishedWeightsError, match=r"1 missing: backbone\.layer3\.5\.conv2"):
        load_published(build_model("simple_vqa"), weights)


def test_a_score_of_the_small_one_is_the_mean_of_its_frame_scores():
    model = build_model("tiny_simple_vqa", motion=5, width=4)
    frames, motion = torch.randn(2, 3, 3, 32, 32), torch.randn(2, 3, 5)

    frame_scores = model.frame_scores(frames, motion)

    assert frame_scores.shape == (2, 3)
    torch.testing.assert_close(model(frames, motion), frame_scores.mean(1))


def test_pooled_features_are_mean_and_unbiased_deviation_of_each_stage():
    model = build_model("tiny_simple_vqa", motion=5, width=4).eval()
    frames = torch.randn(1, 2, 3, 32, 48)

    features = model.features(frames)

    expected = [
        statistic
        for stage in model.backbone(frames[0])
        for statistic in (
            np.mean(stage.detach().numpy(), axis=(2, 3)),
            np.std(stage.detach().numpy(), axis=(2, 3), ddof=1),
        )
    ]
    np.testing.assert_allclose(
        features[0].detach(), np.concatenate(expected, axis=1), rtol=1e-4, atol=1e-6
    )


def test_a_feature_map_without_deviation_has_finite_gradients():
    class Pointwise(torch.nn.Conv2d):
        def forward(self, images):
            return (super().forward(images),)

    pointwise = Pointwise(3, 4, kernel_size=1, bias=False)
    model = FrameScorer(pointwise, channels=[4], motion=5, hidden=8)
    frames = torch.zeros(2, 2, 3, 8, 8)  # zeros have no deviation, however sums are rounded

    model(frames, torch.zeros(2, 2, 5)).sum().backward()

    assert model.features(frames)[..., 4:].max() == 0
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_motion_of_another_length_is_an_error():
    model = build_model("tiny_simple_vqa", motion=5)

    with pytest.raises(ValueError, match=r"motion: expected shape \[1, 2, 5\], got \[1, 2, 6\]"):
        model(torch.zeros(1, 2, 3, 32, 32), torch.zeros(1, 2, 6))


def test_frames_too_small_to_deviate_are_an_error():
    model = build_model("tiny_simple_vqa", motion=5)

    with pytest.raises(ValueError, match="several locations, got 16 x 16 pixels"):
        model(torch.zeros(2, 2, 3, 16, 16), torch.zeros(2, 2, 5))
