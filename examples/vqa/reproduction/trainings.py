"""The trainings behind the paper's numbers: as a table asks for them, and as they are run."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from vqa.io.files import digest

# Places on the loss curve that every run leaves; an odd number includes the weights themselves.
LANDSCAPE_POINTS = 21


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
    def root(self) -> PlannedRun:
        """The run that this one in the end starts from; itself if it starts from none."""
        return self if self.start is None else self.start.root

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
