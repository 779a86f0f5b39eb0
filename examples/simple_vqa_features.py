"""Extract the features of SimpleVQA from the videos of a data set, once before training.

    python examples/simple_vqa_features.py paper --dataset konvid-1k --data-root KoNViD-1k \
        --output features --slowfast-weights SLOWFAST_8x8_R50.pyth --processes 8
    python examples/simple_vqa_features.py tiny

Writes key frames and motion features of every video to the output folder, for any number of data
sets. After an interruption, or when videos have changed, run it again: it keeps what is done.
`tiny` is for mini-UGC and needs no weights.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from vqa.datasets import load_dataset
from vqa.errors import expected_errors_in_one_line
from vqa.features.cache import Extraction, extract_features
from vqa.features.key_frames import TINY, YOUTUBE_UGC, FeatureSettings
from vqa.synthetic.mini_ugc import DEFAULT_FOLDER
from vqa.training.distributed import DeviceName, own_device

DATA = DEFAULT_FOLDER.parent


@dataclass(frozen=True)
class ExtractFeatures:
    """What to extract, from which videos, and where it goes."""

    output: Path = DATA / "features"
    """Folder of the features."""
    dataset: str = "konvid-1k"
    """Name of the data set, or `list` or `csv` for one of your own."""
    data_root: Path = Path("KoNViD-1k")
    """Folder of the data set."""
    annotations: Path | None = None
    """Its annotation file; looked for in the usual places if not given."""
    score_column: str | None = None
    """Column of the score, as in the training scripts, if it has no usual name."""
    missing_files: Literal["stop", "skip"] = "stop"
    """Stop when annotated files are missing, or go on without them."""
    bad_files: Literal["stop", "skip"] = "stop"
    """Stop at a video that cannot be read, or leave it out and count it."""
    features: FeatureSettings = field(default_factory=FeatureSettings)
    """What is read from every video."""
    slowfast_weights: Path | None = None
    """The published slowfast_r50 of PyTorchVideo, trained on Kinetics-400."""
    processes: int = os.cpu_count() or 1
    """Videos at the same time."""
    device: DeviceName = "auto"
    """Where the motion network runs: `auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`."""


PRESETS = {
    "paper": ("As published, for most data sets.", ExtractFeatures()),
    "youtube-ugc": (
        "As published for YouTube-UGC: 20 key frames.",
        ExtractFeatures(
            DATA / "youtube-ugc-features", "youtube-ugc", Path("YouTube-UGC"), features=YOUTUBE_UGC
        ),
    ),
    "tiny": (
        "For mini-UGC: four key frames and frame differences, without any weights.",
        ExtractFeatures(DATA / "mini-ugc-features", "mini-ugc", DEFAULT_FOLDER, features=TINY),
    ),
}


def main(settings: ExtractFeatures) -> Extraction:
    """Extract, and say how many videos were worked on."""
    dataset = load_dataset(
        settings.dataset,
        settings.data_root,
        settings.annotations,
        score_column=settings.score_column,
        drop_missing=settings.missing_files == "skip",
    )
    done = extract_features(
        [sample.path for sample in dataset.samples],
        settings.output,
        settings.features,
        settings.slowfast_weights,
        settings.processes,
        str(own_device(settings.device)),
        skip_bad_files=settings.bad_files == "skip",
    )
    print(f"{settings.output}: features of {done.extracted} videos extracted, {done.reused} reused")
    for message in done.bad_files:
        print(f"left out: {message}")
    return done


if __name__ == "__main__":
    with expected_errors_in_one_line():
        main(tyro.extras.overridable_config_cli(PRESETS, description=__doc__))
