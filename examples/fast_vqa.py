"""Train, fine-tune and test FAST-VQA (Wu et al. 2022), with or without weight perturbation.

    python examples/fast_vqa.py paper --data-root LSVQ --pretrained swin_tiny_k400.pth
    python examples/fast_vqa.py finetune --data-root KoNViD-1k --finetune-from best.pt
    python examples/fast_vqa.py tiny

`tiny` runs anywhere: it trains the demo's model on mini-UGC, whose opinion scores are synthetic.
"""

import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal
from zlib import crc32

import torch
import tyro
from torch import Tensor, nn

from vqa.errors import expected_errors_in_one_line
from vqa.models import ENDS, build_model
from vqa.models.quality_planes import PLANES
from vqa.sampling.fast_vqa import FAST_VQA, FAST_VQA_M, FastVqaSampling, read_clips
from vqa.sampling.tiny_fast_vqa import FragmentSampling, read_planes
from vqa.training.loader import Inputs, Read
from vqa.training.losses import quality_loss
from vqa.training.main import run_script
from vqa.training.optim import adamw_for_backbone_and_head, cosine_multiplier, load_initial_weights
from vqa.training.settings import Settings, on_any_machine
from vqa.training.task import Phase, Task


@dataclass(frozen=True)
class FastVqa(Settings):
    """Settings of FAST-VQA."""

    model: Literal["fast_vqa", "fast_vqa_m", "tiny_fast_vqa"] = "fast_vqa"
    sampling: Literal["fixed", "released"] = "fixed"
    """How fragments are cut. `released` cuts at random in testing too, and cuts enlarged videos
    from a part of each frame. The tiny model has one way only."""
    frames: int | None = None
    """Frames of a clip. Default: the number that the model was made for."""
    augmentation: Literal["none", "auto", "rand", "trivial"] = "none"
    """Augmentation of whole frames in training: AutoAugment, RandAugment or TrivialAugment."""
    test_clips: int = 4
    """Clips over which a test score is the mean."""
    rank_weight: float = 0.3
    """Weight of the rank loss beside the PLCC loss."""
    relative_tables: Literal["keep", "copy"] = "keep"
    """`copy` sets the fragments' position tables to the relative ones of `pretrained`. In the
    paper's runs they start at zero."""
    checkpoint_activations: bool = False
    """Recompute activations in the backward pass: less memory, more time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.test_clips < 1:
            raise ValueError(f"test_clips: expected at least 1, got {self.test_clips}")
        if self.model == "tiny_fast_vqa":
            idle = ("frames", "relative_tables", "checkpoint_activations")
            self._refuse_without_effect(idle, self.model)


PAPER = FastVqa(
    dataset="lsvq",
    data_root=Path("LSVQ"),
    perturb="awp",
    sampling="released",
    schedule="released",
)
PRESETS = {
    "paper": ("The paper's training on LSVQ, with AWP.", PAPER),
    "finetune": (
        "The published fine-tuning: the head alone, then everything, without perturbation.",
        replace(
            PAPER,
            dataset="konvid-1k",
            data_root=Path("KoNViD-1k"),
            linear_epochs=10,
            epochs=20,
            perturb="none",
        ),
    ),
    "tiny": (
        "The demo's model on mini-UGC with AWP, in a minute or two on a CPU.",
        on_any_machine(
            FastVqa(
                model="tiny_fast_vqa",
                epochs=40,
                backbone_factor=1.0,
            )
        ),
    ),
}


def task(settings: FastVqa) -> Task:
    """FAST-VQA as the shared training code takes it."""
    return Task(
        script="fast_vqa",
        build=partial(_build, settings),
        read=_reader(settings),
        scores=_scores,
        loss=partial(quality_loss, rank_weight=settings.rank_weight),
        optimizer=partial(adamw_for_backbone_and_head, settings=settings),
        multiplier=partial(cosine_multiplier, settings=settings),
        end=ENDS[settings.model],
    )


def _build(settings: FastVqa) -> nn.Module:
    if settings.model == "tiny_fast_vqa":
        return load_initial_weights(build_model(settings.model, planes=PLANES), settings)
    return load_initial_weights(
        build_model(settings.model, checkpoint_activations=settings.checkpoint_activations),
        settings,
        copy_missing=settings.relative_tables == "copy",
        # No Kinetics-400 file has position tables for the small variant's window.
        allow_shape_mismatch=settings.model == "fast_vqa_m",
    )


def _reader(settings: FastVqa) -> Read:
    if settings.model == "tiny_fast_vqa":
        return partial(
            read_planes,
            sampling=FragmentSampling(),
            test_views=settings.test_clips,
            augmentation=settings.augmentation,
        )
    shape = FAST_VQA_M if settings.model == "fast_vqa_m" else FAST_VQA
    if settings.frames is not None:
        shape = replace(shape, frames=settings.frames)
    training = replace(shape, behaviour=settings.sampling, augmentation=settings.augmentation)
    testing = replace(training, clips=settings.test_clips, augmentation="none")
    return partial(_read, training, testing)


def _read(
    training: FastVqaSampling,
    testing: FastVqaSampling,
    path: Path,
    generator: torch.Generator | None,
) -> Inputs:
    if generator is not None:
        return (read_clips(path, training, generator),)
    if testing.behaviour == "released":  # random in testing, too, but the same each time
        generator = torch.Generator().manual_seed(crc32(os.fsencode(path.name)))
    return (read_clips(path, testing, generator),)


def _scores(model: nn.Module, inputs: Inputs, phase: Phase) -> Tensor:
    """Mean over the clips of a video and all places of their score maps."""
    (clips,) = inputs
    maps: Tensor = model(clips.flatten(0, 1))
    return maps.reshape(len(clips), -1).mean(dim=1)


if __name__ == "__main__":
    with expected_errors_in_one_line():
        settings = tyro.extras.overridable_config_cli(PRESETS, description=__doc__)
        run_script(settings, task(settings))
