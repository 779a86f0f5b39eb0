"""How far the loss rises along each mode's direction: held to the library's own perturbation."""

import json

import pytest
import torch
from torch import nn

from benchmarks.climbs import Climbs, at_perturbed_weights, cosine, main, rises
from finetune_image_quality import quality_loss
from torch_awp import AdversarialWeightPerturbation


class Scores(nn.Module):
    """A network of one score a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, images):
        return self.layers(images)[:, 0]


def test_the_rise_along_the_gradient_is_that_of_a_step_of_the_library():
    model, images, scores = Scores(), torch.randn(8, 4), torch.randn(8)
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD(model.parameters(), lr=0.1), 0.05)
    losses = []
    for _ in optimizer.passes():
        optimizer.zero_grad()
        loss = quality_loss(model(images), scores)
        loss.backward()
        losses.append(loss.item())
    optimizer.zero_grad()
    quality_loss(model(images), scores).backward()
    gradient = {n: w.grad for n, w in model.named_parameters() if w.ndim > 1}

    found = rises(model, images, scores, gradient, [0.05])

    assert found["0.05"] == pytest.approx(losses[1] - losses[0], abs=1e-6)


def test_the_weights_come_back():
    model = Scores()
    before = [w.detach().clone() for w in model.parameters()]
    direction = {n: torch.randn_like(w) for n, w in model.named_parameters() if w.ndim > 1}

    with torch.no_grad(), at_perturbed_weights(model, direction, 0.1):
        shares = [
            float((w - old).norm() / old.norm())
            for w, old in zip(model.parameters(), before, strict=True)
            if w.ndim > 1
        ]

    assert shares == pytest.approx([0.1, 0.1], rel=1e-4)
    assert all(w.equal(old) for w, old in zip(model.parameters(), before, strict=True))


def test_the_cosine_is_the_mean_over_layers():
    a = {"first": torch.tensor([1.0, 0.0]), "second": torch.tensor([[0.0, 2.0]])}
    b = {"first": torch.tensor([3.0, 0.0]), "second": torch.tensor([[1.0, 0.0]])}

    assert cosine(a, b) == pytest.approx(0.5)


def test_every_direction_is_measured_and_written(few_images, tmp_path, capsys):
    main(
        Climbs(
            data_root=few_images["data_root"],
            weights="none",
            backbone="test_efficientnet",
            size=48,
            crop=32,
            batch=6,
            steps=6,
            every=2,
            gammas=(0.01,),
            output=tmp_path / "climbs.json",
        )
    )

    document = json.loads((tmp_path / "climbs.json").read_text("utf-8"))
    assert set(document["mean"]) == {"current", "previous", "update", "random"}
    assert document["places"] == 1
    assert document["mean"]["current"]["cosine"] == pytest.approx(1)
    assert set(document["mean"]["update"]) == {"cosine", "0.01"}
    assert {"versions", "device", "time"} <= set(document["provenance"])
    assert "random: cosine" in capsys.readouterr().out
