"""Files that runs read: data sets, SimpleVQA's features of them, and pretrained weights."""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from vqa.datasets import SPECS, DatasetError, load_dataset
from vqa.datasets.annotations import find_annotations
from vqa.io.files import digest, file_state, sha256
from vqa.reproduction.runs import GENERATED, PlannedRun

# What a model starts from, by script; `slowfast` computes SimpleVQA's motion features.
WEIGHTS: Mapping[str, str] = {
    "fast_vqa": "Video Swin-T, Kinetics-400",
    "sama_vqa": "Video Swin-T, Kinetics-400",
    "sama_iqa": "SwinV2-T (window 8, 256 pixels), ImageNet",
    "simple_vqa": "ResNet-50, ImageNet",
    "slowfast": "SlowFast-R50 (8x8), Kinetics-400",
}
# YouTube-UGC has 20 key frames, all others 8; a folder holds features of one kind.
_OF_ITS_OWN = {"youtube-ugc": 20}
_KEY_FRAMES = 8
# Assumed, not measured: seconds per video, and bytes per key frame of 520 lines as PNG.
_SECONDS, _BYTES = 1.0, 0.7e6


@dataclass(frozen=True)
class Sources:
    data_root: Path  # folder with one folder for each data set, of its name
    roots: Mapping[str, Path] = field(default_factory=dict)  # of data sets that lie elsewhere
    annotations: Mapping[str, Path] = field(default_factory=dict)  # not in their usual places
    weights: Mapping[str, Path] = field(default_factory=dict)  # by script
    features: Path = Path("features")  # of SimpleVQA, in one folder for each kind
    from_scratch: bool = False  # train from random weights where none are given

    def root(self, dataset: str) -> Path:
        return self.roots.get(dataset, self.data_root / dataset)

    def features_folder(self, dataset: str) -> Path:
        kind = dataset if dataset in _OF_ITS_OWN or dataset == "mini-ugc" else "videos"
        return self.features / kind

    def dataset_options(self, dataset: str) -> list[str]:
        options = ["--dataset", dataset, "--data-root", str(self.root(dataset))]
        if dataset in self.annotations:
            options += ["--annotations", str(self.annotations[dataset])]
        return options

    def extraction_options(self, dataset: str) -> list[str]:
        """Preset and settings of simple_vqa_features.py."""
        options = [dataset if dataset in _OF_ITS_OWN else "paper", *self.dataset_options(dataset)]
        if "slowfast" in self.weights:
            options += ["--slowfast-weights", str(self.weights["slowfast"])]
        return [*options, "--output", str(self.features_folder(dataset))]

    def missing(self, run: PlannedRun) -> str | None:
        """What a run lacks, the run that it starts from aside; None if it lacks nothing."""
        for dataset in run.datasets:
            if dataset not in GENERATED and not self.root(dataset).is_dir():
                return f"no data set {dataset} in {self.root(dataset)}"
        if run.preset == "tiny":
            return None
        if run.script == "simple_vqa" and "slowfast" not in self.weights:
            return f"no --weights slowfast=FILE ({WEIGHTS['slowfast']})"
        if run.start is None and run.script not in self.weights and not self.from_scratch:
            named = f"{run.script}=FILE ({WEIGHTS[run.script]})"
            return f"no --weights {named} and no --from-scratch"
        return None

    def digests(self, datasets: Iterable[str] = ()) -> dict[str, str]:
        """Digests of all that decides a result beside settings, by data set and model.

        Of every data set that is there its place, annotation files, and sizes and times of change
        of the media files; of weights their content.
        """
        there = [name for name in datasets if self.root(name).is_dir()]
        digests = {name: self._digest_of_data(name) for name in there}
        return digests | {name: sha256(file)[:16] for name, file in self.weights.items()}

    def _digest_of_data(self, dataset: str) -> str:
        root, annotations = self.root(dataset), self.annotations.get(dataset)
        labels: list[str] = []
        media: list[object] = []
        with suppress(DatasetError):  # the run will say what is wrong
            found = find_annotations(SPECS[dataset], root, annotations)
            labels = [sha256(path) for path in found.values()]
            samples = load_dataset(dataset, root, annotations, drop_missing=True).samples
            paths = [sample.path for sample in samples]
            media = [(os.path.relpath(path, root), file_state(path)) for path in paths]
        return digest([str(root.resolve()), labels, media])[:16]


def extractions(runs: Iterable[PlannedRun]) -> tuple[str, ...]:
    """Data sets whose features SimpleVQA reads in runs; the tiny preset extracts its own."""
    readers = [run for run in runs if run.script == "simple_vqa" and run.preset != "tiny"]
    return tuple(dict.fromkeys(dataset for run in readers for dataset in run.datasets))


def describe_extraction(dataset: str) -> str:
    """What extracting features will cost if nothing of them is there."""
    videos = sizes(dataset).total()
    size = videos * _OF_ITS_OWN.get(dataset, _KEY_FRAMES) * _BYTES
    return (
        f"{dataset}, {videos} videos, about {videos * _SECONDS / 3600:.3g} h and"
        f" {size / 1e9:.3g} GB (assumed, not measured; what is there already is kept)"
    )


def sizes(dataset: str) -> Counter[str]:
    """Samples of a data set by part, as published; a random split has 80 % to train on."""
    counts: Counter[str] = Counter()
    for reference in reversed(SPECS[dataset].references):  # the first of a kind counts
        counts[reference.part or "all"] = reference.count
    every = counts.pop("all", 0)
    if not counts["train"]:
        counts.update(train=round(0.8 * every), test=round(0.2 * every))
    return counts


def read_roots(entries: Sequence[str]) -> tuple[dict[str, Path], dict[str, Path]]:
    """Roots and annotation files from entries `NAME=PATH` or `NAME=PATH,ANNOTATIONS`."""
    roots, annotations = {}, {}
    for name, place in _named("roots", entries, SPECS):
        root, comma, file = place.partition(",")
        roots[name] = Path(root)
        if comma:
            annotations[name] = _existing("roots", file)
    return roots, annotations


def read_weights(entries: Sequence[str]) -> dict[str, Path]:
    """Weight files from entries `SCRIPT=FILE`."""
    named = _named("weights", entries, WEIGHTS)
    return {name: _existing("weights", file) for name, file in named}


def _named(
    argument: str, entries: Sequence[str], names: Collection[str]
) -> Iterator[tuple[str, str]]:
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not (equals and value) or name not in names:
            raise ValueError(
                f"{argument}: expected NAME=PATH with a NAME of {', '.join(names)}, got {entry!r}"
            )
        yield name, value


def _existing(argument: str, file: str) -> Path:
    if not Path(file).is_file():
        raise ValueError(f"{argument}: expected a file, there is none: {file}")
    return Path(file)
