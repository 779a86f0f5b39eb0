"""What SimpleVQA reads instead of videos, extracted once before its runs."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vqa.reproduction.cost import sizes
from vqa.reproduction.sources import Sources
from vqa.reproduction.trainings import PlannedRun

# YouTube-UGC has 20 key frames, all others 8; a folder holds features of one kind.
_OF_ITS_OWN = {"youtube-ugc": 20}
_KEY_FRAMES = 8
# Assumed, not measured: seconds per video, and bytes per key frame of 520 lines as PNG.
_SECONDS, _BYTES = 1.0, 0.7e6


@dataclass(frozen=True)
class Extraction:
    """Features of one data set."""

    dataset: str

    @property
    def preset(self) -> str:
        """Preset of simple_vqa_features.py."""
        return self.dataset if self.dataset in _OF_ITS_OWN else "paper"

    def command(self, sources: Sources, script: Path) -> list[str]:
        """The command line, beginning with this Python."""
        options = ["--dataset", self.dataset, "--data-root", str(sources.root(self.dataset))]
        if self.dataset in sources.annotations:
            options += ["--annotations", str(sources.annotations[self.dataset])]
        if "slowfast" in sources.weights:
            options += ["--slowfast-weights", str(sources.weights["slowfast"])]
        folder = ["--output", str(features_folder(sources, self.dataset))]
        return [sys.executable, str(script), self.preset, *options, *folder]

    def describe(self) -> str:
        """What it will cost if nothing of it is there."""
        videos = sizes(self.dataset).total()
        size = videos * _OF_ITS_OWN.get(self.dataset, _KEY_FRAMES) * _BYTES
        hours = videos * _SECONDS / 3600
        return (
            f"{self.dataset}, {videos} videos, about {hours:.3g} h and {size / 1e9:.3g} GB"
            " (assumed, not measured; what is there already is kept)"
        )


def extractions(runs: Iterable[PlannedRun]) -> tuple[Extraction, ...]:
    """What runs need; the tiny preset extracts its own."""
    datasets = [
        dataset
        for run in runs
        if run.script == "simple_vqa" and run.preset != "tiny"
        for dataset in (run.dataset, *run.also_test)
    ]
    return tuple(Extraction(dataset) for dataset in dict.fromkeys(datasets))


def features_folder(sources: Sources, dataset: str) -> Path:
    """Where features of a data set are."""
    kind = dataset if dataset in _OF_ITS_OWN or dataset == "mini-ugc" else "videos"
    return sources.features / kind
