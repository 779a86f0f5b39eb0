"""The trainings behind the paper's numbers: as a table asks for them, and as they are run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from vqa.io.files import digest

DataName = Literal["paper", "mini-ugc"]
Selection = Literal["validation", "test", "last"]

# Places on the loss curve that every run leaves; an odd number includes the weights themselves.
LANDSCAPE_POINTS = 21

# Data sets that are built where they are not there.
GENERATED = ("mini-ugc", "mini-iqa")
# They have official parts, so that there is nothing to draw.
_ONE_SPLIT = frozenset({"lsvq", *GENERATED})
_OTHER_DATASETS = frozenset({"lsvq-1080p", "konvid-1k", "live-vqc"})
_REPLACEMENTS = (
    "models: the `tiny` preset of every script, from random weights, instead of the paper's",
    "LSVQ, KoNViD-1k, LIVE-VQC and YouTube-UGC: mini-UGC, trained on its part `train` and tested"
    " on its part `test`; tables that differ only in their data set therefore show the same runs",
    "other data sets than the one trained on (LSVQ-1080p and, in Tables 6 and 9, KoNViD-1k and"
    " LIVE-VQC): mini-UGC's part `ood`, called `mini-ugc-ood` in the results, three times the same",
    "fine-tuning: on mini-UGC's training part once more",
    "KonIQ-10k and SPAQ: mini-IQA; median over ten random splits: its one official split",
)


@dataclass(frozen=True)
class Training:
    """What a cell or a curve needs to have been trained, whatever the seed and the split."""

    script: str
    """Name of the script in `examples/`, without its ending."""
    preset: str
    dataset: str
    flags: tuple[str, ...] = ()
    """Settings beside the preset's, as the script takes them."""
    also_test: tuple[str, ...] = ()
    """Further data sets that the trained model is tested on."""
    start: Training | None = None
    """The training whose chosen weights are fine-tuned."""
    splits: tuple[int, ...] = (0,)
    """Splits over which a score is the median."""


@dataclass(frozen=True)
class PlannedRun:
    """One call of a script: a training with one seed on one split.

    Equal runs have equal names, whichever table asks for them, so that each is done once.
    """

    script: str
    preset: str
    dataset: str
    flags: tuple[str, ...]
    also_test: tuple[str, ...]
    seed: int
    split: int
    start: PlannedRun | None = None
    digests: tuple[tuple[str, str], ...] = ()
    """Digests of the files that decide the result: pretrained weights, annotations, media."""

    @property
    def name(self) -> str:
        """Name of its folder: to read, and with a digest of everything that decides its result."""
        return f"{self.script}-{self.dataset}-{digest(asdict(self))[:16]}"

    @property
    def chain(self) -> tuple[PlannedRun, ...]:
        """The run that this one in the end starts from, and so on, up to itself."""
        return (self,) if self.start is None else (*self.start.chain, self)

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the data sets that it is trained or tested on."""
        return (self.dataset, *self.also_test)

    @property
    def passes(self) -> int:
        """Forward/backward passes of a step."""
        if self.value("--perturb") != "awp":
            return 1
        return 1 + int(self.value("--steps") or 1)

    def value(self, flag: str) -> str | None:
        """What a flag is set to, the last time it is given; None if it is left to the preset."""
        places = [place for place, text in enumerate(self.flags) if text == flag]
        return self.flags[places[-1] + 1] if places else None

    def describe(self) -> str:
        """The run in a line."""
        more = f" from {self.start.name}" if self.start is not None else ""
        flags = f" {' '.join(self.flags)}" if self.flags else ""
        return (
            f"{self.script} {self.preset}, {self.dataset}{flags},"
            f" split {self.split}, seed {self.seed}{more}"
        )


@dataclass(frozen=True)
class DataChoice:
    """The data that tables are made of: the paper's, or generated stand-ins that everybody has.

    >>> choice = DataChoice("mini-ugc")
    >>> choice.training(Training("sama_iqa", "paper", "spaq", splits=(0, 1))).dataset
    'mini-iqa'
    >>> choice.part("live-vqc")
    'mini-ugc-ood'
    """

    name: DataName

    @property
    def comparable(self) -> bool:
        """Whether results may be held against the paper's numbers."""
        return self.name == "paper"

    @property
    def notes(self) -> tuple[str, ...]:
        """What was replaced."""
        return () if self.comparable else _REPLACEMENTS

    def training(self, asked: Training) -> Training:
        """What a training that a table asks for becomes."""
        if self.comparable:
            return asked
        return Training(
            script=asked.script,
            preset="tiny",
            dataset="mini-iqa" if asked.script == "sama_iqa" else "mini-ugc",
            flags=_for_tiny(asked.flags),
            start=None if asked.start is None else self.training(asked.start),
        )

    def part(self, asked: str) -> str:
        """Part of the results from the one that a cell asks for."""
        return "mini-ugc-ood" if not self.comparable and asked in _OTHER_DATASETS else asked


def _for_tiny(flags: tuple[str, ...]) -> tuple[str, ...]:
    """Without what means nothing for tiny models and sets with official parts.

    Scoring the few training clips costs nothing, and more tables share a run this way.
    """
    kept = [flag for flag in flags if flag != "--no-train-score"]
    for name in ("--official-parts", "--protocol"):
        if name in kept:
            place = kept.index(name)
            del kept[place : place + 2]
    return tuple(kept)


@dataclass(frozen=True)
class Sweep:
    """What all runs of a reproduction have in common: seeds, splits, settings."""

    data: DataChoice
    seeds: tuple[int, ...] = (42,)
    splits: tuple[int, ...] | None = None
    """Instead of every table's own."""
    select_on: Selection = "validation"
    """Which scores choose the epoch."""
    flags: tuple[str, ...] = ()
    """Further settings of every run."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Of files that decide results: pretrained weights by script, data sets by name."""

    def runs(self, asked: Training) -> tuple[PlannedRun, ...]:
        """Every run behind a training: seed by seed, split by split."""
        training = self.data.training(asked)
        splits = (0,) if training.dataset in _ONE_SPLIT else self.splits or training.splits
        return tuple(self._run(training, seed, split) for seed in self.seeds for split in splits)

    def _run(self, training: Training, seed: int, split: int) -> PlannedRun:
        start = None if training.start is None else self._run(training.start, seed, 0)
        common = ("--select-on", self.select_on, "--landscape-points", str(LANDSCAPE_POINTS))
        names = [training.dataset, *training.also_test]
        names += [training.script] if start is None else []
        names += ["slowfast"] if training.script == "simple_vqa" else []
        return PlannedRun(
            script=training.script,
            preset=training.preset,
            dataset=training.dataset,
            flags=(*training.flags, *common, *self.flags),
            also_test=training.also_test,
            seed=seed,
            split=split,
            start=start,
            digests=tuple((name, self.digests[name]) for name in names if name in self.digests),
        )
