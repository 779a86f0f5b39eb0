"""Train, fine-tune and test SAMA on videos (Liu et al. 2024), with or without weight perturbation.

    python examples/sama_vqa.py paper --data-root LSVQ --pretrained swin_tiny_k400.pth
    python examples/sama_vqa.py finetune --data-root KoNViD-1k --finetune-from best.pt
    python examples/sama_vqa.py tiny

The model is FAST-VQA's; the sampling of clips, and the scale of the scores in training, are SAMA's.
`tiny` runs anywhere: it trains a small model on mini-UGC, whose opinion scores are
synthetic.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor, nn

from vqa.errors import expected_errors_in_one_line
from vqa.models import ENDS, build_model
from vqa.sampling.sama_video import SamaSampling, read_sama_clips
from vqa.training.loader import Inputs, Read
from vqa.training.losses import quality_loss
from vqa.training.main import run_script
from vqa.training.optim import adamw_for_backbone_and_head, cosine_multiplier, load_initial_weights
from vqa.training.settings import Settings, on_any_machine
from vqa.training.task import Phase, Task


@dataclass(frozen=True)
class SamaVqa(Settings):
    """Settings of SAMA on videos."""

    model: Literal["sama_vqa", "tiny_fast_vqa"] = "sama_vqa"
    variant: Literal["sama", "sama-c", "sama-mix", "sama-spm", "sama-swm", "fragments"] = "sama"
    """How a clip is sampled."""
    test_clips: int = 4
    """Clips over which a test score is the mean."""
    perturbed_scores: Literal["fixed", "released"] = "fixed"
    """In training a clip's score is the sum over time of the mean over space. The released code
    takes the mean over time in the second pass, which makes the rank loss smaller there; with
    `fixed` a perturbation of size zero is plain training."""
    rank_weight: float = 0.3
    """Weight of the rank loss beside the PLCC loss."""
    relative_tables: Literal["keep", "copy"] = "keep"
    """`copy` sets the fragments' position tables to the relative ones of `pretrained`. In the
    paper's runs they start at zero."""
    checkpoint_activations: bool = False
    """Recompute activations in the backward pass: less memory, more time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model == "tiny_fast_vqa":
            self._refuse_without_effect(("relative_tables", "checkpoint_activations"), self.model)


PAPER = SamaVqa(
    dataset="lsvq",
    data_root=Path("LSVQ"),
    batch=12,
    drop_last=True,
    perturb="awp",
    perturbed_scores="released",
    schedule="released",
)
PRESETS = {
    "paper": ("The paper's training on LSVQ, with AWP.", PAPER),
    "finetune": (
        "The published fine-tuning, without perturbation.",
        replace(PAPER, dataset="konvid-1k", data_root=Path("KoNViD-1k"), perturb="none"),
    ),
    "tiny": (
        "A small model on mini-UGC with AWP, in a few minutes on a CPU.",
        on_any_machine(
            SamaVqa(
                model="tiny_fast_vqa",
                epochs=40,
                batch=12,
                backbone_factor=1.0,
            )
        ),
    ),
}


def task(settings: SamaVqa) -> Task:
    """SAMA on videos as the shared training code takes it."""
    return Task(
        script="sama_vqa",
        build=partial(_build, settings),
        read=_reader(settings),
        scores=partial(_scores, settings),
        loss=partial(quality_loss, rank_weight=settings.rank_weight),
        optimizer=partial(adamw_for_backbone_and_head, settings=settings),
        multiplier=partial(cosine_multiplier, settings=settings),
        end=ENDS[settings.model],
    )


def _build(settings: SamaVqa) -> nn.Module:
    if settings.model == "tiny_fast_vqa":
        return load_initial_weights(build_model(settings.model), settings)
    return load_initial_weights(
        build_model(settings.model, checkpoint_activations=settings.checkpoint_activations),
        settings,
        copy_missing=settings.relative_tables == "copy",
    )


def _reader(settings: SamaVqa) -> Read:
    training = SamaSampling(variant=settings.variant)
    if settings.model == "tiny_fast_vqa":
        training = SamaSampling(variant=settings.variant, frames=8, interval=1, grid=3, patch=16)
    return partial(_read, training, replace(training, clips=settings.test_clips))


def _read(
    training: SamaSampling, testing: SamaSampling, path: Path, generator: torch.Generator | None
) -> Inputs:
    return (read_sama_clips(path, testing if generator is None else training, generator),)


def _scores(settings: SamaVqa, model: nn.Module, inputs: Inputs, phase: Phase) -> Tensor:
    """Mean over clips and places; in training, times the positions in time."""
    (clips,) = inputs
    maps: Tensor = model(clips.flatten(0, 1))
    scores = maps.reshape(len(clips), -1).mean(dim=1)
    if phase == "test" or (phase == "later" and settings.perturbed_scores == "released"):
        return scores
    positions = maps.shape[2] if maps.ndim == 5 else 1
    return scores * positions


if __name__ == "__main__":
    with expected_errors_in_one_line():
        settings = tyro.extras.overridable_config_cli(PRESETS, description=__doc__)
        run_script(settings, task(settings))
