"""The data sets that the examples know: where their files lie and what they should hold.

Counts and ranges are those of the lists that the published models were trained and tested with.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vqa.io.files import MediaKind
from vqa.synthetic.mini_iqa import MiniIqaSettings, build_mini_iqa, is_mini_iqa
from vqa.synthetic.mini_ugc import MiniUgcSettings, build_mini_ugc, is_mini_ugc

Part = Literal["train", "validation", "test", "1080p", "ood"]


@dataclass(frozen=True)
class Sample:
    """One file and its mean opinion score."""

    path: Path
    score: float
    part: Part | None = None  # the official one; None where a data set has no official parts


@dataclass(frozen=True)
class DataSet:
    """Labelled files in the order of their annotation files."""

    name: str
    kind: MediaKind
    samples: tuple[Sample, ...]
    source: Path  # the (first) annotation file
    synthetic: bool = False  # whether the scores are computed rather than given by people
    dropped: int = 0  # listed files that are missing and were left out
    unrated: int = 0  # listed files whose score is unknown and that were left out


# Annotation files that together describe a data set: their usual names, relative to the data root,
# by the part whose rows they hold; None if the rows say it.
Layout = Mapping[Part | None, Sequence[str]]


@dataclass(frozen=True)
class Reference:
    """How many samples a data set, or a part of it, should have, and its range of scores."""

    count: int
    mos: tuple[float, float] | None = None
    part: Part | None = None  # None: all samples
    scale: bool = False  # `mos` is the scale that scores lie on rather than their extremes
    note: str = ""


@dataclass(frozen=True)
class DataSetSpec:
    """How a data set lies on disk; of names and columns the best one is first."""

    name: str
    kind: MediaKind | None  # None: tell by the file names
    layouts: tuple[Layout, ...]  # the first that is there is used
    folders: tuple[str, ...] = ("",)  # of the media files, relative to the data root
    # Media file of a row: its {name}, or the {id} before the first '_' or '.' in it.
    files: tuple[str, ...] = ("{name}",)
    scores: tuple[str, ...] = ("mos",)
    # A second annotation file that only says the part of every row of the first.
    part_files: tuple[str, ...] = ()
    only: Part | None = None  # take this part; rows that do not say their part belong to it
    needs_parts: bool = False
    first_column_names: bool = False  # whether the first column does if none is called so
    four_columns: bool = False  # whether every annotation file is a four-column list
    references: tuple[Reference, ...] = ()
    build: Callable[[Path], bool] | None = None  # of a generated set, if it is not there


_TABLES = tuple(
    f"{name}.{ending}"
    for ending in ("csv", "tsv", "txt")
    for name in ("labels", "mos", "scores", "annotations")
)
_FAST_VQA_LISTS = ("labels.txt", "labels.csv")
_KONVID_TABLES = (
    *("KoNViD_1k_attributes.csv", "KoNViD_1k_metadata/KoNViD_1k_attributes.csv"),
    "KONVID_1K_metadata.csv",
)
_YOUTUBE_UGC_TABLES = tuple(
    f"{begin}MOS_for_YouTube_UGC_dataset.{end}"
    for begin in ("original_videos_", "")
    for end in ("xlsx", "csv")
)
_KONIQ_TABLES = ("koniq10k_scores_and_distributions.csv", "koniq10k_distributions_sets.csv")
_SPAQ_TABLE = "MOS and Image attribute scores.xlsx"
_TWO_LISTS: Layout = {
    "train": ("labels_train.txt", "train.txt"),
    "test": ("labels_test.txt", "test.txt"),
}
_LSVQ_BOTH: Layout = {None: ("labels_train_test.csv",)}
_LSVQ_TRAIN: Layout = {"train": ("LSVQ_whole_train.csv", "train_labels.txt", "labels_train.txt")}
_LSVQ_TEST: Layout = {"test": ("LSVQ_whole_test.csv", "labels_test.txt", "test_labels.txt")}
_LSVQ_1080P: Layout = {
    "1080p": (
        *("labels_test_1080p.csv", "labels_1080p.csv"),
        *("LSVQ_whole_test_1080p.csv", "labels_1080p.txt"),
    )
}

_LSVQ = DataSetSpec(
    name="lsvq",
    kind="video",
    layouts=({**_LSVQ_BOTH, **_LSVQ_1080P}, {**_LSVQ_TRAIN, **_LSVQ_TEST, **_LSVQ_1080P}),
    folders=("", "videos", "LSVQ"),
    files=("{name}", "{name}.mp4"),
    needs_parts=True,
    references=(
        Reference(28056, (2.45, 90.52), "train"),
        Reference(7186, (8.47, 91.03), "test", note="FAST-VQA"),
        Reference(7182, None, "test", note="SAMA"),
        Reference(7220, None, "test", note="SimpleVQA"),
        Reference(3573, (17.7, 91.4), "1080p", note="FAST-VQA"),
        Reference(3561, None, "1080p", note="SimpleVQA"),
    ),
)


def _lsvq_part(part: Part, *layouts: Layout) -> DataSetSpec:
    references = tuple(reference for reference in _LSVQ.references if reference.part == part)
    return replace(_LSVQ, name=f"lsvq-{part}", layouts=layouts, only=part, references=references)


_SPECS = (
    _LSVQ,
    _lsvq_part("train", _LSVQ_BOTH, _LSVQ_TRAIN),
    _lsvq_part("test", _LSVQ_BOTH, _LSVQ_TEST),
    _lsvq_part("1080p", _LSVQ_1080P),
    DataSetSpec(
        name="konvid-1k",
        kind="video",
        layouts=({None: _KONVID_TABLES + _FAST_VQA_LISTS}, _TWO_LISTS),
        folders=("", "KoNViD_1k_videos"),
        files=(
            "{name}",
            "{id}.mp4",
            "{id}_original_centercrop_960x540_8s.mp4",
            "{id}_centercrop_960x540_8s.mp4",
        ),
        references=(Reference(1200, (1.22, 4.64)),),
    ),
    DataSetSpec(
        name="live-vqc",
        kind="video",
        layouts=({None: ("data.mat", *_FAST_VQA_LISTS)}, _TWO_LISTS),
        folders=("", "Video"),
        files=("{name}", "{name}.mp4"),
        references=(Reference(585, (6.22, 94.29)),),
    ),
    DataSetSpec(
        name="youtube-ugc",
        kind="video",
        layouts=({None: (*_YOUTUBE_UGC_TABLES, "mylabels.txt", *_FAST_VQA_LISTS)}, _TWO_LISTS),
        folders=("", "original_videos", "original_videos_h264"),
        files=("{name}", "{name}.mp4", "{name}_crf_10_ss_00_t_20.0.mp4", "{name}.mkv"),
        scores=("mos_full", "mos"),
        references=(
            Reference(1147, (1.24, 4.68), note="FAST-VQA's list"),
            Reference(1195, (1.0, 9.5), note="SAMA's mylabels.txt"),
            Reference(1040, None, note="the paper's subset"),
        ),
    ),
    DataSetSpec(
        name="koniq-10k",
        kind="image",
        layouts=({None: _KONIQ_TABLES + _FAST_VQA_LISTS},),
        folders=("", "1024x768", "512x384", "images"),
        scores=("mos_zscore", "mos"),
        part_files=_KONIQ_TABLES[1:],
        references=(
            Reference(10073, (0.0, 100.0), scale=True, note="z-scores"),
            Reference(10073, (1.0, 5.0), scale=True, note="MOS"),
            Reference(7058, None, "train"),
            Reference(1000, None, "validation"),
            Reference(2015, None, "test"),
        ),
    ),
    DataSetSpec(
        name="spaq",
        kind="image",
        layouts=({None: (f"Annotations/{_SPAQ_TABLE}", _SPAQ_TABLE, *_FAST_VQA_LISTS)},),
        folders=("", "TestImage"),
        references=(Reference(11125, (0.0, 100.0), scale=True),),
    ),
    DataSetSpec(
        name="biq2021",
        kind="image",
        layouts=(
            {"train": ("Train (Images and MOS).csv",), "test": ("Test (Images and MOS).csv",)},
            {None: _FAST_VQA_LISTS},
        ),
        folders=("", "Images", "images"),
        references=(
            Reference(10000, (0.0, 1.0), "train", scale=True),
            Reference(900, (0.0, 1.0), "train", scale=True, note="the subset of 1,349 images"),
            Reference(2000, (0.0, 1.0), "test", scale=True),
            Reference(449, (0.0, 1.0), "test", scale=True, note="the subset of 1,349 images"),
        ),
    ),
    DataSetSpec(
        name="mini-ugc",
        kind="video",
        layouts=({"train": ("train.txt",), "test": ("test.txt",), "ood": ("ood.txt",)},),
        references=(
            Reference(120, (1.0, 5.0), "train", scale=True),
            Reference(84, (1.0, 5.0), "test", scale=True),
            Reference(84, (1.0, 5.0), "ood", scale=True),
        ),
        build=lambda folder: is_mini_ugc(folder) or build_mini_ugc(folder, MiniUgcSettings()),
    ),
    DataSetSpec(
        name="mini-iqa",
        kind="image",
        layouts=({None: ("labels.csv",)},),
        folders=("images",),
        references=(
            Reference(204, (1.0, 5.0), "train", scale=True),
            Reference(105, (1.0, 5.0), "test", scale=True),
        ),
        build=lambda folder: is_mini_iqa(folder) or build_mini_iqa(folder, MiniIqaSettings()),
    ),
    DataSetSpec(
        name="list",
        kind=None,
        layouts=({None: ("labels.txt", "mylabels.txt", "list.txt")}, _TWO_LISTS),
        four_columns=True,
    ),
    DataSetSpec(
        name="csv",
        kind=None,
        layouts=({None: _TABLES},),
        folders=("", "images", "Images", "videos", "Videos"),
        scores=("mos", "score", "mos_zscore", "quality", "rating"),
        first_column_names=True,
    ),
)

SPECS: dict[str, DataSetSpec] = {spec.name: spec for spec in _SPECS}
