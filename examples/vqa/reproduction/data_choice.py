"""The data that tables are made of: the paper's, or generated stand-ins that everybody has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from vqa.reproduction.trainings import Training

DataName = Literal["paper", "mini-ugc"]

# Data sets that are built where they are not there.
GENERATED = ("mini-ugc", "mini-iqa")
# They have official parts, so that there is nothing to draw.
_ONE_SPLIT = frozenset({"lsvq", *GENERATED})
_OTHER_DATASETS = frozenset({"lsvq-1080p", "konvid-1k", "live-vqc"})


@dataclass(frozen=True)
class DataChoice:
    """What the trainings that tables ask for become."""

    name: DataName
    comparable: bool
    """Whether results may be held against the paper's numbers."""
    training: Callable[[Training], Training]
    part: Callable[[str], str]
    """Part of the results from the one that a cell asks for."""
    notes: tuple[str, ...] = ()
    """What was replaced."""


def data_choice(name: DataName) -> DataChoice:
    """The choice of that name.

    >>> choice = data_choice("mini-ugc")
    >>> choice.training(Training("sama_iqa", "paper", "spaq", splits=(0, 1))).dataset
    'mini-iqa'
    >>> choice.part("live-vqc")
    'mini-ugc-ood'
    """
    if name == "paper":
        return DataChoice(name, True, _as_asked, str)
    return DataChoice(name, False, _tiny, _tiny_part, _REPLACEMENTS)


def has_one_split(dataset: str) -> bool:
    """Whether a data set is always divided alike."""
    return dataset in _ONE_SPLIT


def _as_asked(training: Training) -> Training:
    return training


def _tiny(training: Training) -> Training:
    return Training(
        script=training.script,
        preset="tiny",
        dataset="mini-iqa" if training.script == "sama_iqa" else "mini-ugc",
        flags=_for_tiny(training.flags),
        start=None if training.start is None else _tiny(training.start),
    )


def _for_tiny(flags: tuple[str, ...]) -> tuple[str, ...]:
    """Without what means nothing for tiny models and sets with official parts.

    Scoring the few training clips costs nothing, and more tables share a run this way.
    """
    kept = list(flags)
    for name in ("--official-parts", "--protocol"):
        if name in kept:
            place = kept.index(name)
            del kept[place : place + 2]
    return tuple(flag for flag in kept if flag != "--no-train-score")


def _tiny_part(part: str) -> str:
    return "mini-ugc-ood" if part in _OTHER_DATASETS else part


_REPLACEMENTS = (
    "models: the `tiny` preset of every script, from random weights, instead of the paper's",
    "LSVQ, KoNViD-1k, LIVE-VQC and YouTube-UGC: mini-UGC, trained on its part `train` and tested"
    " on its part `test`; tables that differ only in their data set therefore show the same runs",
    "other data sets than the one trained on (LSVQ-1080p and, in Tables 6 and 9, KoNViD-1k and"
    " LIVE-VQC): mini-UGC's part `ood`, called `mini-ugc-ood` in the results, three times the same",
    "fine-tuning: on mini-UGC's training part once more",
    "KonIQ-10k and SPAQ: mini-IQA; median over ten random splits: its one official split",
)
