"""Train, fine-tune and test SimpleVQA (Sun et al. 2022), with or without weight perturbation.

    python examples/simple_vqa_features.py paper --dataset lsvq --data-root LSVQ ...
    python examples/simple_vqa.py paper --data-root LSVQ --pretrained resnet50.pth
    python examples/simple_vqa.py finetune --data-root KoNViD-1k --finetune-from best.pt
    python examples/simple_vqa.py tiny

The first command extracts, once, the features that the others read. `tiny` runs anywhere: it makes
simple motion features itself and trains a small model on mini-UGC, whose scores are synthetic.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor, nn

import simple_vqa_features
from vqa.errors import expected_errors_in_one_line
from vqa.features.cache import MANIFEST, FeatureCache, cropped, extract_features, filled
from vqa.features.key_frames import (
    FRAME_DIFFERENCES,
    TINY,
    FeatureSettings,
    MotionExtractor,
    read_chunks,
)
from vqa.models import ENDS, build_model
from vqa.training.loader import Inputs
from vqa.training.losses import l1_rank_loss
from vqa.training.main import run_script
from vqa.training.optim import adam, load_initial_weights, step_decay
from vqa.training.settings import Settings, on_any_machine
from vqa.training.task import Phase, Task


@dataclass(frozen=True)
class SimpleVqa(Settings):
    """Settings of SimpleVQA."""

    model: Literal["simple_vqa", "tiny_simple_vqa"] = "simple_vqa"
    features: Path = simple_vqa_features.DATA / "features"
    """Folder of the features that simple_vqa_features.py extracted."""
    crop: int = 448
    """Pixels of a key frame's square crop: anywhere in training, the centre in testing."""
    loss: Literal["fixed", "released"] = "fixed"
    """The paper's L1 + rank loss, or the released code's, whose exchanged arguments leave the rank
    term without a gradient."""
    batch_statistics: Literal["fixed", "released"] = "fixed"
    """Passes of a step that update BatchNorm's running statistics: the first one, or every one as
    in the released code."""
    decay: float = 0.95
    """Decay of the learning rate every two epochs; SimpleVQA's own script has 0.9."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_without_effect(("schedule", "warm_up_epochs", "backbone_factor"), "SimpleVQA")


PAPER = SimpleVqa(
    dataset="lsvq",
    data_root=Path("LSVQ"),
    epochs=10,
    batch=8,
    learning_rate=1e-5,
    weight_decay=1e-7,
    ema=0.0,
    logistic_fit=True,
    logistic_start="released",
    perturb="awp",
    loss="released",
    batch_statistics="released",
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
            SimpleVqa(
                model="tiny_simple_vqa",
                features=simple_vqa_features.PRESETS["tiny"][1].output,
                crop=96,
                epochs=30,
                batch=16,
                weight_decay=1e-4,
            )
        ),
    ),
}


def task(settings: SimpleVqa) -> Task:
    """SimpleVQA as the shared training code takes it."""
    return Task(
        script="simple_vqa",
        build=partial(_build, settings),
        read=partial(_read, settings.features, settings.crop),
        scores=_scores,
        loss=partial(l1_rank_loss, released_order=settings.loss == "released"),
        optimizer=partial(adam, settings=settings),
        multiplier=partial(_multiplier, settings),
        prepare=partial(_prepare, settings),
        files=(settings.features / MANIFEST,),
        features=lambda: FeatureCache.open(settings.features).made(),
        head="quality",
        clips="quality",
        end=ENDS[settings.model],
        freeze_statistics=settings.batch_statistics == "fixed",
    )


def task_without_cache(
    settings: SimpleVqa, features: FeatureSettings, motion: MotionExtractor
) -> Task:
    """The same for testing videos whose features are not kept: made anew for every reading."""
    return replace(
        task(settings),
        read=partial(_read_video, features, motion.size, settings.crop),
        scores=partial(_scores_of_chunks, motion),
    )


def _build(settings: SimpleVqa) -> nn.Module:
    if settings.model == "tiny_simple_vqa":
        return load_initial_weights(build_model(settings.model, motion=FRAME_DIFFERENCES), settings)
    return load_initial_weights(build_model(settings.model), settings)


def _prepare(settings: SimpleVqa, videos: Sequence[Path]) -> None:
    """Extract what the tiny model reads, in seconds; see that there is what the other one reads."""
    if settings.model == "tiny_simple_vqa":
        skip = settings.bad_files == "skip"
        done = extract_features(videos, settings.features, TINY, skip_bad_files=skip)
        print(f"features of {done.extracted} videos extracted, {done.reused} reused")
    else:
        FeatureCache.open(settings.features)


_open = lru_cache(FeatureCache.open)  # once for each process that reads


def _read(folder: Path, crop: int, video: Path, generator: torch.Generator | None) -> Inputs:
    return _open(folder).read(video, generator, crop)


def _read_video(
    features: FeatureSettings,
    size: int,
    crop: int,
    video: Path,
    generator: torch.Generator | None,
) -> Inputs:
    key_frames, chunks = read_chunks(video, features, size)
    frames = cropped([*key_frames], features.key_frames, generator, crop)
    return frames, torch.stack([*chunks])


def _scores_of_chunks(
    extractor: MotionExtractor, model: nn.Module, inputs: Inputs, phase: Phase
) -> Tensor:
    """With motion features made here, where there may be a GPU."""
    frames, chunks = inputs
    motion = [torch.stack([extractor(chunk) for chunk in own]) for own in chunks]
    same_length = torch.stack([filled(own, frames.shape[1]) for own in motion])
    return _scores(model, (frames, same_length.to(frames.device)), phase)


def _scores(model: nn.Module, inputs: Inputs, phase: Phase) -> Tensor:
    """Mean over the key frames of a video."""
    frames, motion = inputs
    scores: Tensor = model(frames, motion)
    return scores


def _multiplier(settings: SimpleVqa, step: int, steps_per_epoch: int) -> float:
    return step_decay(step // steps_per_epoch, settings.decay)


if __name__ == "__main__":
    with expected_errors_in_one_line():
        settings = tyro.extras.overridable_config_cli(PRESETS, description=__doc__)
        run_script(settings, task(settings))
