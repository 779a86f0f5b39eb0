"""Draw the loss around the weights of trained models, and measure its sharpness.

Reads checkpoints of the training scripts or the demo (`best.pt`) and draws the loss of all models
along the same random directions in one figure; with `--surface` also over a plane. The loss is that
of their training, on samples read as in testing. Run `python examples/landscape.py --help` for the
settings.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from textwrap import fill
from typing import Any, NoReturn

import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from torch_awp.landscape import sharpness
from training_scripts import script_and_settings
from vqa.datasets import DataSet, Sample, load_dataset
from vqa.errors import expected_errors_in_one_line
from vqa.figures import draw_contours, draw_curves, draw_surface
from vqa.io.files import replacing, write_json
from vqa.processes import progress_bar
from vqa.training.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from vqa.training.distributed import DeviceName, ProcessGroup, own_device
from vqa.training.landscape import (
    LandscapeSettings,
    Loss,
    mean_loss,
    random_curve,
    random_surface,
    read_batches,
)
from vqa.training.optim import load_checkpoint_weights
from vqa.training.settings import METHOD_NAMES, Settings
from vqa.training.split_samples import parts_of
from vqa.training.task import Task

_REPOSITORY = Path(__file__).resolve().parents[1]
_NAME_WIDTH = 36  # characters of a line in legends and titles; longer names are broken
# Settings by which the losses of one script differ.
_OF_THE_LOSS = ("rank_weight", "loss", "batch")


@dataclass(frozen=True)
class Landscape:
    """Settings of the drawing."""

    checkpoint: tuple[Path, ...]
    """Checkpoints to compare, each once, all of the same script with the same loss."""
    dataset: str | None = None
    """Name of the data set, or `list` or `csv` for one of your own. Default, also of the next two:
    as in the training of the first checkpoint."""
    data_root: Path | None = None
    """Folder of the data set."""
    annotations: Path | None = None
    """Its annotation file."""
    part: str = "train"
    """`train`, `validation`, `test`, a further part of the data set's own (such as `ood`), or
    `all`."""
    batches: int = 4
    """Batches over which the loss is the mean, as large as those of the training."""
    device: DeviceName = "auto"
    """`auto` is a GPU where there is one."""
    output: Path = _REPOSITORY / "runs" / "landscape"
    """Folder for landscape.json, curves.png and surfaces.png."""
    directions: int = 1
    """Random directions. With several, the line is their mean and the band their range."""
    seed: int = 0
    """Seed of the directions; the demo's curves have 0."""
    samples: int = 10
    """Random perturbations over which the average-case sharpness is the mean."""
    surface: bool = False
    """Draw the loss over a plane, too: `points` times `points` losses for each checkpoint."""
    landscape: LandscapeSettings = field(default_factory=LandscapeSettings)

    def __post_init__(self) -> None:
        if not self.checkpoint or len(set(self.checkpoint)) < len(self.checkpoint):
            raise ValueError(f"checkpoint: expected one or more, each once, got {self.checkpoint}")
        for name in ("directions", "batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")


@dataclass(frozen=True)
class Trained:
    """A model to look at."""

    file: Path
    checkpoint: Checkpoint
    settings: Settings
    task: Task
    model: nn.Module


@dataclass(frozen=True)
class Surroundings:
    """What was found around one model."""

    loss: float
    worst_rise: float
    average_rise: float
    curves: Tensor
    """Losses [directions, points]."""
    surface: Tensor | None
    """Losses [points, points] over a plane that begins with the first direction."""
    cosine: float | None
    """Between the plane's two directions."""


@dataclass(frozen=True)
class ChosenSamples:
    """What the loss is a function of."""

    dataset: DataSet
    part: str
    samples: tuple[Sample, ...]

    def describe(self) -> str:
        kind = ", synthetic opinion scores" if self.dataset.synthetic else ""
        return f"{self.dataset.name}, {len(self.samples)} {self.dataset.kind}s of {self.part}{kind}"


def main(settings: Landscape) -> None:
    """Load models and data, measure, print the table, write figures and numbers."""
    group = ProcessGroup(own_device(settings.device))
    models = _load_models(settings.checkpoint, group)
    data = _load_samples(settings, next(iter(models.values())).settings)
    print(data.describe())
    found = _measure(models, data.samples, settings, group)
    print("\n" + table(found, settings.landscape.radius))
    paths = [settings.output / "landscape.json", settings.output / "curves.png"]
    write_json(paths[0], _document(models, found, data, settings))
    _save(_curves(found, data.describe(), settings), paths[1])
    if settings.surface:
        paths.append(settings.output / "surfaces.png")
        _save(_surfaces(found, data.describe(), settings), paths[2])
    print("\nWritten:", *paths, sep="\n  ")


def table(found: Mapping[str, Surroundings], radius: float) -> str:
    """One line per model: its loss, and how far it rises within the relative radius."""
    width = max(len(name) for name in found)
    lines = [
        f"Rise of the loss within {radius:g} of each layer's norm:\n",
        f"{'':<{width}}{'loss':>12}{'worst case':>12}{'average':>12}",
    ]
    for name, own in found.items():
        numbers = (own.loss, own.worst_rise, own.average_rise)
        lines.append(f"{name:<{width}}" + "".join(f"{number:>12.5f}" for number in numbers))
    return "\n".join(lines)


def _load_models(files: Sequence[Path], group: ProcessGroup) -> dict[str, Trained]:
    """The models by what the legend calls them."""
    checkpoints = {file: load_checkpoint(file) for file in files}
    _check_same_loss(checkpoints)
    models = [_load_model(file, own, group) for file, own in checkpoints.items()]
    names = [_name(own.settings) for own in models]
    occurrences = Counter(names)
    shared = os.path.commonpath([file.absolute().parent for file in files])
    for number, own in enumerate(models):
        if occurrences[names[number]] > 1:
            names[number] += f" ({own.file.absolute().relative_to(shared)})"
    return dict(zip(names, models, strict=True))


def _check_same_loss(checkpoints: Mapping[Path, Checkpoint]) -> None:
    (first, one), *others = checkpoints.items()
    for file, other in others:
        values: dict[str, tuple[Any, Any]] = {"script": (one.script, other.script)}
        for name in _OF_THE_LOSS:
            values[name] = (one.settings.get(name), other.settings.get(name))
        for name, (expected, got) in values.items():
            if got != expected:
                raise CheckpointError(
                    f"{file}: expected {name} {expected} as in {first}, got {got}: their losses do"
                    " not compare"
                )


def _load_model(file: Path, checkpoint: Checkpoint, group: ProcessGroup) -> Trained:
    script, trained = script_and_settings(file, checkpoint)
    # What the training began with plays no part any more.
    settings = replace(trained, pretrained=None, finetune_from=None)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    task = script.task(settings)
    model = task.build().to(group.device)
    load_checkpoint_weights(model, file, checkpoint)
    return Trained(file, checkpoint, settings, task, model.eval())


def _name(settings: Settings) -> str:
    gamma = "" if settings.method == "plain" else f", gamma {settings.gamma:g}"
    return f"{METHOD_NAMES[settings.method]}{gamma}, seed {settings.seed}"


def _load_samples(settings: Landscape, trained: Settings) -> ChosenSamples:
    given = {name: getattr(settings, name) for name in ("dataset", "data_root", "annotations")}
    own = replace(trained, **{name: value for name, value in given.items() if value is not None})
    dataset = load_dataset(
        own.dataset,
        own.data_root,
        own.annotations,
        score_column=own.score_column,
        drop_missing=own.missing_files == "skip",
    )
    some = _part(settings.part, dataset, own)[: settings.batches * own.batch]
    return ChosenSamples(dataset, settings.part, some)


def _part(name: str, dataset: DataSet, settings: Settings) -> tuple[Sample, ...]:
    if name == "all":
        return dataset.samples
    parts = parts_of(dataset, {}, settings, settings.splits[0])
    known = {"train": parts.train, "validation": parts.validation, "test": parts.test}
    known |= {also.removeprefix(f"{dataset.name}-"): own for also, own in parts.also.items()}
    if len(known.get(name, ())) < 2:
        there = ", ".join(part for part, own in known.items() if own)
        raise ValueError(f"part: expected one of {there}, all, got {name!r}")
    return known[name]


def _measure(
    models: Mapping[str, Trained],
    samples: Sequence[Sample],
    settings: Landscape,
    group: ProcessGroup,
) -> dict[str, Surroundings]:
    with progress_bar("landscape", len(models) * _losses_per_model(settings), "loss") as bar:
        return {
            name: _surroundings(own.model, _counted(_loss(own, samples, group), bar), settings)
            for name, own in models.items()
        }


def _loss(trained: Trained, samples: Sequence[Sample], group: ProcessGroup) -> Loss:
    """The loss of the model's own training, on samples as its task reads them."""
    trained.task.prepare([sample.path for sample in samples])
    return mean_loss(trained.task, read_batches(trained.task, trained.settings, samples, group))


def _losses_per_model(settings: Landscape) -> int:
    """How often a model's loss is computed: the centre, both kinds of rise, curves, surface."""
    points = settings.landscape.points
    rises = settings.landscape.ascent_steps + 1 + settings.samples + 1
    return 1 + rises + settings.directions * points + settings.surface * points**2


def _surroundings(model: nn.Module, loss: Loss, settings: Landscape) -> Surroundings:
    where = settings.landscape
    with torch.no_grad():
        centre = float(loss(model))
    curves = [
        random_curve(model, loss, where, settings.seed + number)
        for number in range(settings.directions)
    ]
    surface, cosine = (
        random_surface(model, loss, where, settings.seed) if settings.surface else (None, None)
    )
    return Surroundings(
        loss=centre,
        worst_rise=sharpness(model, loss, where.radius, steps=where.ascent_steps),
        average_rise=sharpness(model, loss, where.radius, mode="average", samples=settings.samples),
        curves=torch.stack(curves),
        surface=surface,
        cosine=cosine,
    )


def _counted(loss: Loss, bar: tqdm[NoReturn]) -> Loss:
    def counted(model: nn.Module) -> Tensor:
        bar.update()
        return loss(model)

    return counted


def _document(
    models: Mapping[str, Trained],
    found: Mapping[str, Surroundings],
    data: ChosenSamples,
    settings: Landscape,
) -> dict[str, object]:
    """All numbers, for other programs."""
    return {
        "dataset": data.dataset.name,
        "annotations": str(data.dataset.source),
        "part": data.part,
        "samples_of_the_part": len(data.samples),
        "opinion_scores": "synthetic" if data.dataset.synthetic else "human",
        "landscape": asdict(settings.landscape),
        "seed": settings.seed,
        "samples": settings.samples,
        "positions": settings.landscape.positions.tolist(),
        "models": [
            {
                "name": name,
                "checkpoint": str(models[name].file),
                "script": models[name].checkpoint.script,
                "method": models[name].settings.method,
                "seed": models[name].settings.seed,
                "gamma": models[name].settings.gamma,
                "loss": own.loss,
                "sharpness": {"worst": own.worst_rise, "average": own.average_rise},
                "curves": own.curves.tolist(),
                "surface": None if own.surface is None else own.surface.tolist(),
                "cosine": own.cosine,
            }
            for name, own in found.items()
        ],
    }


def _curves(found: Mapping[str, Surroundings], title: str, settings: Landscape) -> Figure:
    curves = {fill(name, _NAME_WIDTH): own.curves for name, own in found.items()}
    legend = sum(1 + name.count("\n") for name in curves) / 2  # lines, in two columns
    figure = Figure(figsize=(6.4, 4.0 + 0.2 * legend), layout="constrained")
    axes = figure.subplots()
    draw_curves(axes, settings.landscape.positions, curves)
    if settings.directions > 1:
        axes.set_ylabel(f"loss, mean and range over {settings.directions} directions")
    figure.suptitle(title, fontsize="medium")
    return figure


def _surfaces(found: Mapping[str, Surroundings], title: str, settings: Landscape) -> Figure:
    """A column for each model: the plane from above and in perspective, on one scale for all."""
    surfaces = {name: own.surface for name, own in found.items() if own.surface is not None}
    limits = (
        min(float(surface.min()) for surface in surfaces.values()),
        max(float(surface.max()) for surface in surfaces.values()),
    )
    positions, columns = settings.landscape.positions, len(surfaces)
    figure = Figure(figsize=(4.2 * columns, 7.0), layout="constrained")
    for column, (name, surface) in enumerate(surfaces.items(), start=1):
        above = figure.add_subplot(2, columns, column)
        draw_contours(above, positions, surface, limits)
        above.set_title(fill(name, _NAME_WIDTH), fontsize="medium")
        perspective = figure.add_subplot(2, columns, columns + column, projection="3d")
        draw_surface(perspective, positions, surface, limits)
    figure.suptitle(title, fontsize="medium")
    return figure


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=150, format="png")


if __name__ == "__main__":
    with expected_errors_in_one_line():
        main(tyro.cli(Landscape, description=__doc__))
