"""The trainings behind the paper's numbers: as a table asks for them, and as they are run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from vqa.io.files import digest

DataName = Literal["paper", "mini-ugc"]
Selection = Literal["validation", "test", "last"]

# Data sets that are built where they are not there.
GENERATED = ("mini-ugc", "mini-iqa")
# They have official parts, so that there is nothing to draw.
_ONE_SPLIT = frozenset({"lsvq", *GENERATED})
_SPLITS = {"sama_iqa": tuple(range(10))}  # a score is the median over these
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
class PlannedRun:
    """One call of a script: a training with one seed on one split.

    Equal runs have equal names, whichever table asks for them, so that each is done once. What a
    cell of a table asks for is a run, too, whose seed, split and files `Sweep` fills in.
    """

    script: str  # its name in `examples/`, without its ending
    preset: str
    dataset: str
    flags: tuple[str, ...] = ()  # settings beside the preset's, as the script takes them
    also_test: tuple[str, ...] = ()  # further data sets that the trained model is tested on
    start: PlannedRun | None = None  # whose chosen weights are fine-tuned
    seed: int = 0
    split: int = 0
    # Of the files that decide the result: pretrained weights, annotations, media.
    digests: tuple[tuple[str, str], ...] = ()

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
        more = f" from {self.start.name}" if self.start is not None else ""
        flags = f" {' '.join(self.flags)}" if self.flags else ""
        return (
            f"{self.script} {self.preset}, {self.dataset}{flags},"
            f" split {self.split}, seed {self.seed}{more}"
        )


@dataclass(frozen=True)
class Sweep:
    """What all runs of a reproduction have in common: data, seeds, splits, settings."""

    data: DataName  # the paper's, or generated stand-ins that everybody has
    seeds: tuple[int, ...] = (42,)
    splits: tuple[int, ...] | None = None  # instead of every table's own
    select_on: Selection = "validation"  # which scores choose the epoch
    flags: tuple[str, ...] = ()  # further settings of every run
    # Of files that decide results: pretrained weights by script, data sets by name.
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def comparable(self) -> bool:
        """Whether results may be held against the paper's numbers."""
        return self.data == "paper"

    @property
    def replaced(self) -> tuple[str, ...]:
        """What stands in for what, in words."""
        return () if self.comparable else _REPLACEMENTS

    def part(self, asked: str) -> str:
        """Part of the results from the one that a cell asks for."""
        return "mini-ugc-ood" if not self.comparable and asked in _OTHER_DATASETS else asked

    def runs(self, asked: PlannedRun) -> tuple[PlannedRun, ...]:
        """Every run behind what a cell asks for: seed by seed, split by split."""
        run = asked if self.comparable else _stand_in(asked)
        splits = self.splits or _SPLITS.get(run.script, (0,))
        if run.dataset in _ONE_SPLIT:
            splits = (0,)
        return tuple(self._filled(run, seed, split) for seed in self.seeds for split in splits)

    def _filled(self, run: PlannedRun, seed: int, split: int) -> PlannedRun:
        start = None if run.start is None else self._filled(run.start, seed, 0)
        # An odd number of places on the loss curve includes the weights themselves.
        common = ("--select-on", self.select_on, "--landscape-points", "21")
        names = [*run.datasets]
        names += [run.script] if start is None else []
        names += ["slowfast"] if run.script == "simple_vqa" else []
        digests = tuple((name, self.digests[name]) for name in names if name in self.digests)
        flags = (*run.flags, *common, *self.flags)
        return replace(run, flags=flags, start=start, seed=seed, split=split, digests=digests)


def _stand_in(asked: PlannedRun) -> PlannedRun:
    """The run of a tiny model on a generated data set, without what means nothing for these.

    Scoring the few training clips costs nothing, and more tables share a run this way.
    """
    flags = [flag for flag in asked.flags if flag != "--no-train-score"]
    for name in ("--official-parts", "--protocol"):
        if name in flags:
            place = flags.index(name)
            del flags[place : place + 2]
    dataset = "mini-iqa" if asked.script == "sama_iqa" else "mini-ugc"
    start = None if asked.start is None else _stand_in(asked.start)
    return PlannedRun(asked.script, "tiny", dataset, tuple(flags), start=start)
