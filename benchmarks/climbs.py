"""How far does the loss of a pretrained network rise along the direction of each mode?

Trains plainly by `examples/finetune_image_quality.py` and stops at some steps to look around: the
rise of the batch's loss from the weights `w` to `w + v`, `v = gamma ||w|| d / ||d||` in each layer,
where `d` is

* `current`: the gradient of the same batch (AWP);
* `previous`: the gradient of the batch before (`ascent="previous"`);
* `update`: the last change of the weights (`ascent="update"`);
* `random`: Gaussian noise (RWP);

and the cosine between `d` and the batch's gradient, mean over layers. The network normalises by the
batch, as in training.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor, nn

sys.path.extend(str(Path(__file__).resolve().parents[1] / folder) for folder in (".", "examples"))

from finetune_image_quality import (
    Backbone,
    Finetuning,
    Images,
    adamw,
    batches,
    load_parts,
    quality_loss,
)
from torch_awp import freeze_running_stats
from vqa.errors import expected_errors_in_one_line
from vqa.io.files import write_json
from vqa.provenance import provenance

Direction = Mapping[str, Tensor]


@dataclass(frozen=True)
class Climbs:
    """Settings of the measurement."""

    data_root: Path
    """Folder of the images with their table."""
    weights: str = "package"
    """As of the training script."""
    backbone: str = "tf_efficientnet_lite0"
    size: int = 256
    crop: int = 192
    batch: int = 32
    steps: int = 40
    """Of the training; every `every`-th of its second half is looked at."""
    every: int = 5
    gammas: tuple[float, ...] = (1e-4, 5e-4, 2e-3, 1e-2)
    seed: int = 0
    output: Path = Path(__file__).parent / "results" / "climbs.json"


def main(climbs: Climbs) -> None:
    """Train, look around, print and write."""
    settings = Finetuning(
        data_root=climbs.data_root, backbone=climbs.backbone, weights=climbs.weights,
        size=climbs.size, crop=climbs.crop, batch=climbs.batch, seed=climbs.seed,
        perturb="plain", perturb_last=1.0, validation_share=0.0, device="cpu", backbone_factor=0.1,
    )  # fmt: skip
    places = list(look_around(climbs, settings))
    means = {
        direction: {
            what: statistics.mean(place[direction][what] for place in places) for what in own
        }
        for direction, own in places[0].items()
    }
    for direction, own in means.items():
        print(f"{direction}: " + ", ".join(f"{what} {value:+.4f}" for what, value in own.items()))
    values = asdict(climbs)
    for folder in ("data_root", "output"):
        del values[folder]
    write_json(
        climbs.output,
        {
            "settings": values,
            "places": len(places),
            "mean": means,
            "provenance": provenance(torch.device("cpu")),
        },
    )


def look_around(climbs: Climbs, settings: Finetuning) -> Iterator[dict[str, dict[str, float]]]:
    """Plain training, and what is found at some of its steps, before they are taken."""
    torch.manual_seed(settings.seed)
    model = Backbone(settings.backbone, settings.weights, settings.dropout)
    optimizer = adamw(model.to(memory_format=torch.channels_last), settings)
    parts, generator = load_parts(settings), torch.Generator().manual_seed(settings.seed)
    model.train()
    gradient: dict[str, Tensor] = {}
    update: dict[str, Tensor] = {}
    for step, (images, scores) in enumerate(endless(parts["train"], settings, generator)):
        if step == climbs.steps:
            return
        loss = quality_loss(model(images), scores)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        current = {name: w.grad.clone() for name, w in moved(model).items() if w.grad is not None}
        if step > climbs.steps // 2 and step % climbs.every == 0:
            noise = {name: torch.randn_like(w) for name, w in current.items()}
            directions = {
                "current": current, "previous": gradient, "update": update, "random": noise,
            }  # fmt: skip
            yield {
                name: {
                    "cosine": cosine(direction, current),
                    **rises(model, images, scores, direction, climbs.gammas),
                }
                for name, direction in directions.items()
            }
        before = {name: w.detach().clone() for name, w in moved(model).items()}
        optimizer.step()
        update = {name: w.detach() - before[name] for name, w in moved(model).items()}
        gradient = current


def endless(
    images: Images, settings: Finetuning, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Epoch after epoch of batches."""
    while True:
        yield from batches(images, settings, generator)


def moved(model: nn.Module) -> dict[str, nn.Parameter]:
    """The tensors that a perturbation moves by default."""
    return {name: w for name, w in model.named_parameters() if w.ndim > 1}


def cosine(direction: Direction, gradient: Direction) -> float:
    """Cosine of two directions, mean over layers."""
    return statistics.mean(
        float(nn.functional.cosine_similarity(direction[name].flatten(), g.flatten(), dim=0))
        for name, g in gradient.items()
    )


@torch.no_grad()
def rises(
    model: nn.Module, images: Tensor, scores: Tensor, direction: Direction, gammas: Sequence[float]
) -> dict[str, float]:
    """Rise of the loss by gamma."""
    with freeze_running_stats(model):
        clean = float(quality_loss(model(images), scores))
        found = {}
        for gamma in gammas:
            with at_perturbed_weights(model, direction, gamma):
                found[f"{gamma:g}"] = float(quality_loss(model(images), scores)) - clean
    return found


@contextmanager
def at_perturbed_weights(model: nn.Module, direction: Direction, gamma: float) -> Iterator[None]:
    """The weights at `w + v` inside."""
    weights = moved(model)
    before = {name: w.detach().clone() for name, w in weights.items()}
    for name, d in direction.items():
        weights[name].add_(d * (gamma * weights[name].norm() / d.norm()))
    try:
        yield
    finally:
        for name, w in weights.items():
            w.copy_(before[name])


if __name__ == "__main__":
    with expected_errors_in_one_line():
        torch.set_num_threads(1)
        main(tyro.cli(Climbs, description=__doc__))
