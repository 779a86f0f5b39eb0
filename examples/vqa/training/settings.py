"""The settings that every training script shares; a script adds its own and the paper's values."""

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from vqa.datasets.splits import Protocol
from vqa.metrics import LogisticStart
from vqa.synthetic.mini_ugc import DEFAULT_FOLDER
from vqa.training.distributed import DeviceName

RUNS = Path(__file__).resolve().parents[3] / "runs"

Method = Literal["plain", "rwp", "awp", "awp-update"]

METHOD_NAMES: dict[Method, str] = {
    "plain": "plain AdamW",
    "rwp": "RWP",
    "awp": "AWP",
    "awp-update": 'AWP, ascent="update"',
}


@dataclass(frozen=True)
class Settings:
    """What to train on, how, and where the results go."""

    # The data
    dataset: str = "mini-ugc"
    """Name of the data set, or `list` or `csv` for one of your own."""
    data_root: Path = DEFAULT_FOLDER
    """Folder of the data set."""
    annotations: Path | None = None
    """Its annotation file; looked for in the usual places if not given."""
    score_column: str | None = None
    """Another score than the data set's usual one, such as MOS of KonIQ-10k; of several columns,
    such as anna,ben or rater*, the mean."""
    also_test: tuple[str, ...] = ()
    """More data sets to test on: NAME=ROOT or NAME=ROOT,ANNOTATIONS."""
    official_parts: Literal["use", "ignore"] = "use"
    """Train and test on the parts that the data set comes with, or split it at random anyway."""
    protocol: Protocol = "paper"
    """Who draws the split where there are no official parts to use."""
    splits: tuple[int, ...] = (0,)
    """Which splits to run, one after the other; the medians are reported with every one."""
    select_on: Literal["validation", "test", "last"] = "validation"
    """Which scores choose the reported epoch. The published scripts choose on the test part, so
    their test scores are too high; `last` takes the last epoch."""
    validation_share: float = 0.1
    """Part of the training samples set aside to choose on."""
    logistic_fit: bool = False
    """Fit a four-parameter logistic before PLCC and RMSE, as SimpleVQA does; the others only move
    predictions to the mean and deviation of the opinion scores before RMSE."""
    logistic_start: LogisticStart = "fixed"
    """Where that fit begins: the released start does not follow the scale of the predictions, so
    PLCC depends on it and can be lower than without a fit."""
    missing_files: Literal["stop", "skip"] = "stop"
    """Stop when annotated files are missing, or go on without them."""
    bad_files: Literal["stop", "skip"] = "stop"
    """Stop at a file that cannot be read, or leave it out and count it."""

    # Perturbation
    perturb: Literal["none", "rwp", "awp", "awp-update"] = "none"
    """Weight perturbation: random, adversarial, or in one pass along the last update."""
    gamma: float = 1e-4
    """Its size relative to each weight tensor."""
    perturb_end: bool = False
    """Perturb the last stage and the head alone. What comes before is computed once a step, so that
    `awp` costs little more than plain training; --dry-run tells how much."""
    steps: int = 1
    """Ascent steps of `awp`."""
    constraint: Literal["layer", "element"] = "element"
    """Ball around each tensor (the paper's text) or box around each element (its code)."""
    named_weight: bool = True
    """Perturb what has "weight" in its name, norms too, as the paper's code does; otherwise what
    has more than one dimension."""
    epsilon: float = 1e-6
    """Added to both norms, as the paper's code does."""

    # Optimisation
    epochs: int = 30
    """Epochs in which everything learns."""
    linear_epochs: int = 0
    """Epochs before these in which only the head learns."""
    warm_up_epochs: float = 2.5
    """Epochs over which the learning rate rises."""
    schedule: Literal["fixed", "released"] = "fixed"
    """The released cosine begins at 0, so that the first step changes nothing, and does not come
    down to 0; the fixed one begins above and ends there."""
    batch: int = 16
    """Samples per step over all processes."""
    accumulate: int = 1
    """Batches per optimizer step."""
    learning_rate: float = 1e-3
    """Of the head, where the backbone has its own."""
    backbone_factor: float = 0.1
    """Learning rate of the backbone relative to the head's."""
    weight_decay: float = 0.05
    """Of all tensors, norms and biases too."""
    ema: float = 0.999
    """Decay of the weights' moving average, which is what is tested; 0 for the weights
    themselves."""
    drop_last: bool = False
    """Leave out an epoch's last batch if it is not full."""
    seed: int = 42
    """Decides first weights, order of the samples, their random views, dropout and perturbation."""

    # Weights to begin with
    pretrained: Path | None = None
    """Published weights of the backbone or the whole model."""
    finetune_from: Path | None = None
    """A checkpoint of these scripts, or published weights of the whole model."""
    evaluate: Path | None = None
    """Test the weights of this checkpoint and train nothing."""
    part: Literal["test", "all"] = "test"
    """What `evaluate` tests: the test part of the splits, or every file."""

    # The machine
    device: DeviceName = "auto"
    """`auto` (a GPU where there is one), `cpu`, `cuda`, or `cuda:1` for one GPU of several."""
    amp: Literal["none", "bf16", "fp16"] = "none"
    """Mixed precision."""
    compile: bool = False
    """Train the model through `torch.compile`."""
    workers: int = 4
    """Processes that read files, for each training process."""
    threads: int | None = None
    """Threads of torch on a CPU; torch's own choice if not given."""

    # Output
    output: Path | None = None
    """Folder of the results, of one running command at a time; by default
    runs/SCRIPT/DATASET-PERTURBATION-seed-SEED, or DATASET-evaluated."""
    resume: Literal["auto", "never"] = "auto"
    """Go on where an interrupted run with the same settings stopped, or begin again."""
    save_every: int = 500
    """Steps between checkpoints within an epoch; one is written after every epoch anyway."""
    train_score: bool = True
    """Score all of the training part at the end, for the gap."""
    landscape_points: int = 0
    """Places at which the training loss around the final weights is evaluated; 0 for none."""
    landscape_batches: int = 4
    """Batches over which that loss is the mean."""
    dry_run: bool = False
    """Show data, model, one batch, memory and an estimate of the time, and stop."""

    def __post_init__(self) -> None:
        def expect(holds: bool, name: str, what: str) -> None:
            if not holds:
                raise ValueError(f"{name}: expected {what}, got {getattr(self, name)}")

        expect(self.batch >= 2, "batch", "at least 2, since losses compare samples")
        for name in ("epochs", "accumulate", "steps", "landscape_batches"):
            expect(getattr(self, name) >= 1, name, "at least 1")
        for name in ("linear_epochs", "workers", "save_every", "landscape_points", "seed"):
            expect(getattr(self, name) >= 0, name, "at least 0")
        rates = ("learning_rate", "weight_decay", "backbone_factor", "warm_up_epochs")
        for name in ("gamma", "epsilon", *rates):
            expect(0 <= getattr(self, name) < math.inf, name, "a finite number from 0")
        for name in ("ema", "validation_share"):
            expect(0 <= getattr(self, name) < 1, name, "at least 0 and below 1")
        once = len(set(self.splits)) == len(self.splits)
        expect(bool(self.splits) and once, "splits", "one or more, each once")
        if self.perturb_end and self.perturb == "none":
            raise ValueError("perturb_end: has an effect with perturb only, which is 'none'")
        if self.perturb_end and self.compile:
            raise ValueError("perturb_end: cannot be used with compile, which fuses end and rest")
        if self.part == "all" and self.evaluate is None:
            raise ValueError("part: 'all' has an effect with evaluate only, which is not given")
        if self.part == "all" and self.landscape_points:
            raise ValueError(
                "landscape_points: of the loss on the training part, which part 'all' does not tell"
                f" apart, got {self.landscape_points}"
            )

    def _refuse_without_effect(self, names: Collection[str], on: str) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in names and value != field.default:
                raise ValueError(f"{field.name}: has no effect on {on}, got {value!r}")

    @property
    def method(self) -> Method:
        """The perturbation as the package names it."""
        return "plain" if self.perturb == "none" else self.perturb


def plain(settings: Any) -> dict[str, Any]:
    """A dataclass of settings as plain values, paths as text."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in asdict(settings).items()
    }


S = TypeVar("S", bound=Settings)
AnySettings = TypeVar("AnySettings")


def restored(kind: type[AnySettings], values: Mapping[str, Any]) -> AnySettings:
    """Settings of that kind from what `plain` made of them; what is not there is as by default."""
    hints, typed = get_type_hints(kind), dict(values)
    for name, value in values.items():
        if name not in hints:
            raise ValueError(f"settings: expected those of {kind.__name__}, got {name!r}")
        possible = get_args(hints[name])
        if get_origin(hints[name]) is Literal and value not in possible:
            choices = ", ".join(map(repr, possible))
            raise ValueError(f"{name}: expected one of {choices}, got {value!r}")
        if value is not None and Path in (hints[name], *possible):
            typed[name] = Path(value)
    return kind(**typed)


def on_any_machine(settings: S) -> S:
    """The same settings on one thread of a CPU, for a small model with AWP as in the demo."""
    return replace(
        settings,
        learning_rate=4e-3,
        ema=0.0,
        perturb="awp",
        gamma=0.01,
        constraint="layer",
        named_weight=False,
        epsilon=0.0,
        workers=0,
        threads=1,
        device="cpu",
    )
