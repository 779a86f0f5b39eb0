"""Train and test SAMA on images (Liu et al. 2024), with or without weight perturbation.

    python examples/sama_iqa.py paper --data-root KonIQ-10k --pretrained swinv2_tiny.pth
    python examples/sama_iqa.py paper --dataset csv --data-root my-images
    python examples/sama_iqa.py tiny

`tiny` runs anywhere: it trains a small model on mini-IQA, whose opinion scores are synthetic. The
paper's code cannot train on images: the preset `paper` is SAMA's own training with AWP.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor, nn

from vqa.errors import expected_errors_in_one_line
from vqa.models import ENDS, build_model
from vqa.sampling.sama_image import SamaImageSampling, read_sama_image
from vqa.synthetic.mini_iqa import DEFAULT_FOLDER
from vqa.training.loader import Inputs
from vqa.training.main import run_script
from vqa.training.optim import adamw_for_backbone_and_head, load_initial_weights, warm_up_constant
from vqa.training.settings import Settings, on_any_machine
from vqa.training.task import Phase, Task


@dataclass(frozen=True)
class SamaIqa(Settings):
    """Settings of SAMA on images."""

    model: Literal["sama_iqa", "tiny_sama_iqa"] = "sama_iqa"
    variant: Literal["sama", "sama-spm", "fragments"] = "sama"
    """How an image is sampled."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_without_effect(("schedule",), "SAMA for images")


PAPER = SamaIqa(
    dataset="koniq-10k",
    data_root=Path("KonIQ-10k"),
    official_parts="ignore",
    protocol="sama",
    splits=tuple(range(10)),
    epochs=50,
    warm_up_epochs=5,
    batch=64,
    perturb="awp",
    seed=44442,
)
PRESETS = {
    "paper": ("SAMA's training on KonIQ-10k, median of 10 splits, with AWP.", PAPER),
    "tiny": (
        "A small model on mini-IQA with AWP, in a minute or two on a CPU.",
        on_any_machine(
            SamaIqa(
                model="tiny_sama_iqa",
                dataset="mini-iqa",
                data_root=DEFAULT_FOLDER,
                epochs=40,
                warm_up_epochs=4,
                batch=16,
                backbone_factor=1.0,
            )
        ),
    ),
}


def task(settings: SamaIqa) -> Task:
    """SAMA on images as the shared training code takes it."""
    return Task(
        script="sama_iqa",
        build=partial(_build, settings),
        read=partial(_read, _sampling(settings)),
        scores=_scores,
        loss=nn.functional.smooth_l1_loss,
        optimizer=partial(adamw_for_backbone_and_head, settings=settings, head="vqa_head"),
        multiplier=partial(_multiplier, settings),
        head="vqa_head",
        end=ENDS[settings.model],
        choice_batch=16,
    )


def _build(settings: SamaIqa) -> nn.Module:
    return load_initial_weights(build_model(settings.model), settings)


def _sampling(settings: SamaIqa) -> SamaImageSampling:
    if settings.model == "tiny_sama_iqa":
        return SamaImageSampling(variant=settings.variant, grid=4, patch=32)
    return SamaImageSampling(variant=settings.variant)


def _read(sampling: SamaImageSampling, path: Path, generator: torch.Generator | None) -> Inputs:
    return (read_sama_image(path, sampling, generator),)


def _scores(model: nn.Module, inputs: Inputs, phase: Phase) -> Tensor:
    """Mean over the tokens of an image."""
    (images,) = inputs
    tokens: Tensor = model(images)
    return tokens.mean(dim=1)


def _multiplier(settings: SamaIqa, step: int, steps_per_epoch: int) -> float:
    return warm_up_constant(step, int(settings.warm_up_epochs * steps_per_epoch))


if __name__ == "__main__":
    with expected_errors_in_one_line():
        settings = tyro.extras.overridable_config_cli(PRESETS, description=__doc__)
        run_script(settings, task(settings))
