"""SlowFast as a frozen extractor of motion features, against the published one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from published_fill import fill, published_input

from vqa.models import PublishedWeightsError, load_published
from vqa.models.slowfast import SLOW_FRAMES, SlowFastR50

DATA = Path(__file__).parents[1] / "data"
PUBLISHED = np.load(DATA / "slowfast_features.npz")
KEYS = DATA / "keys_slowfast_r50.json"


@pytest.fixture(scope="module")
def published_network():
    network = SlowFastR50()
    return network, load_published(network, {"model_state": fill(KEYS)})


def test_features_of_both_pathways_are_the_published_ones(published_network):
    features = published_network[0](published_input("slowfast/x", (1, 3, 32, 224, 224)))

    slow, fast = features.split([2048, 256], dim=1)
    np.testing.assert_allclose(slow[0], PUBLISHED["slow"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(fast[0], PUBLISHED["fast"], rtol=1e-4, atol=1e-5)


def test_the_published_file_fills_every_tensor_and_its_classifier_is_left_out(published_network):
    network, report = published_network
    counts = {name for name in network.state_dict() if name.endswith("num_batches_tracked")}

    assert set(report.loaded) == set(network.state_dict()) - counts
    assert sorted(report.dropped) == ["blocks.6.proj.bias", "blocks.6.proj.weight"]


def test_the_slow_pathway_sees_the_published_frames():
    np.testing.assert_array_equal(SLOW_FRAMES, PUBLISHED["slow_index_32"])


def test_it_stays_frozen_in_a_model_that_trains(published_network):
    outer = torch.nn.Sequential(published_network[0]).train()

    assert not any(part.training for part in outer[0].modules())
    assert not any(parameter.requires_grad for parameter in outer.parameters())


def test_clips_of_another_size_are_an_error(published_network):
    with pytest.raises(ValueError, match=r"clips: expected \[B, 3, 32, 224, 224\], got \[1, 3, 32"):
        published_network[0](torch.zeros(1, 3, 32, 112, 112))


def test_a_file_without_a_tensor_is_an_error_that_names_it():
    weights = fill(KEYS)
    del weights["blocks.2.multipathway_fusion.norm.bias"]

    with pytest.raises(PublishedWeightsError, match=r"missing: blocks\.2\.multipathway_fusion"):
        load_published(SlowFastR50(), weights)
