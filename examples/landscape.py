"""Draw the loss around the weights of trained models, and say how sharp it is.

Takes checkpoints of `examples/demo.py` and a data set, and draws the loss of all models along the
same random directions in one axes, on request over a plane too. Run `python examples/landscape.py
--help` for the settings.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from textwrap import fill
from typing import NoReturn

import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from vqa.demo.checkpoints import Checkpoint, CheckpointError, load_model
from vqa.demo.evaluation import loss_on_clips
from vqa.errors import expected_errors_in_one_line
from vqa.figures import draw_contours, draw_curves, draw_surface
from vqa.io.files import replacing, write_json
from vqa.progress import progress_bar
from vqa.sampling.tiny_fast_vqa import PlaneClips, load_clips, to_planes
from vqa.synthetic.mini_ugc import (
    DEFAULT_FOLDER,
    MiniUgcSettings,
    Part,
    build_mini_ugc,
    is_mini_ugc,
)
from vqa.training.landscape import (
    LandscapeSettings,
    Loss,
    average_rise,
    curve_positions,
    random_curve,
    random_surface,
    worst_rise,
)
from vqa.training.perturbation import METHOD_NAMES

_REPOSITORY = Path(__file__).resolve().parents[1]
_NAME_WIDTH = 36  # characters of a line in legends and titles; longer names are broken


@dataclass(frozen=True)
class Landscape:
    """Settings of the drawing."""

    checkpoint: tuple[Path, ...]
    """Checkpoint files of the models to compare, each once."""
    dataset: str = "mini-ugc"
    """`mini-ugc`, the demo's own (built where it is missing), or the path of a label list."""
    part: Part = "train"
    """Which part of mini-UGC; a label list has only one."""
    output: Path = _REPOSITORY / "runs" / "landscape"
    """Where landscape.json, curves.png and surfaces.png go."""
    directions: int = 1
    """Random directions; with several, the line is the mean and the band the range over them."""
    seed: int = 0
    """Decides the directions; the demo's own curves have 0."""
    samples: int = 10
    """Random places over which the average-case sharpness is the mean."""
    surface: bool = False
    """Draw the loss over a plane, too: `points` times `points` losses for each checkpoint."""
    landscape: LandscapeSettings = field(default_factory=LandscapeSettings)

    def __post_init__(self) -> None:
        if not self.checkpoint or len(set(self.checkpoint)) < len(self.checkpoint):
            raise ValueError(f"checkpoint: expected one or more, each once, got {self.checkpoint}")
        if self.directions < 1:
            raise ValueError(f"directions: expected 1 or more, got {self.directions}")


@dataclass(frozen=True)
class Trained:
    """A model to look at."""

    file: Path
    checkpoint: Checkpoint
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
class Clips:
    """The clips that the loss is a function of, and what they are."""

    label_list: Path
    clips: PlaneClips
    synthetic: bool
    """Whether the opinion scores are known to be."""

    def describe(self) -> str:
        number = len(self.clips.scores)
        if not self.synthetic:
            return f"{self.label_list.stem}, {number} clips"
        return f"mini-UGC, {number} {self.label_list.stem} clips, synthetic opinion scores"


def main(settings: Landscape) -> None:
    """Load models and data, measure, print the table, write figures and numbers."""
    models = _load_models(settings.checkpoint)
    data = _load_clips(settings)
    print(data.describe())
    found = _measure(models, data.clips, settings)
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


def _load_models(files: Sequence[Path]) -> dict[str, Trained]:
    """The models by what the legend calls them."""
    models = [
        Trained(file, checkpoint, model)
        for file in files
        for model, checkpoint in [load_model(file)]
    ]
    _check_same_loss(models)
    names = [_name(own.checkpoint) for own in models]
    occurrences = Counter(names)
    shared = os.path.commonpath([file.absolute().parent for file in files])
    for place, own in enumerate(models):
        if occurrences[names[place]] > 1:
            names[place] += f" ({own.file.absolute().relative_to(shared)})"
    return dict(zip(names, models, strict=True))


def _check_same_loss(models: Sequence[Trained]) -> None:
    first = models[0]
    for other in models[1:]:
        if other.checkpoint.rank_weight != first.checkpoint.rank_weight:
            raise CheckpointError(
                f"{other.file}: expected rank_weight {first.checkpoint.rank_weight} as in"
                f" {first.file}, got {other.checkpoint.rank_weight}: their losses do not compare"
            )


def _name(checkpoint: Checkpoint) -> str:
    gamma = f", gamma {checkpoint.gamma:g}" if checkpoint.gamma else ""
    return f"{METHOD_NAMES[checkpoint.method]}{gamma}, seed {checkpoint.seed}"


def _load_clips(settings: Landscape) -> Clips:
    if settings.dataset == "mini-ugc":
        if not is_mini_ugc(DEFAULT_FOLDER):  # one made with other settings is left alone
            build_mini_ugc(DEFAULT_FOLDER, MiniUgcSettings())
        label_list = DEFAULT_FOLDER / f"{settings.part}.txt"
    else:
        label_list = Path(settings.dataset)
    clips = to_planes(load_clips(label_list))
    return Clips(label_list, clips, synthetic=is_mini_ugc(label_list.parent))


def _measure(
    models: Mapping[str, Trained], clips: PlaneClips, settings: Landscape
) -> dict[str, Surroundings]:
    with progress_bar("landscape", len(models) * _losses_per_model(settings), "loss") as bar:
        return {name: _surroundings(own, clips, settings, bar) for name, own in models.items()}


def _losses_per_model(settings: Landscape) -> int:
    """How often a model's loss is computed: the centre, both kinds of rise, curves, surface."""
    points = settings.landscape.points
    rises = settings.landscape.ascent_steps + 1 + settings.samples + 1
    return 1 + rises + settings.directions * points + settings.surface * points**2


def _surroundings(
    trained: Trained, clips: PlaneClips, settings: Landscape, bar: tqdm[NoReturn]
) -> Surroundings:
    model, where = trained.model, settings.landscape
    loss = _counted(_loss(trained, clips), bar)
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
        worst_rise=worst_rise(model, loss, where),
        average_rise=average_rise(model, loss, where, settings.samples),
        curves=torch.stack(curves),
        surface=surface,
        cosine=cosine,
    )


def _loss(trained: Trained, clips: PlaneClips) -> Loss:
    """The loss of the model's own training, on fragments cut as there."""
    own, planes = trained.checkpoint, clips.planes.shape[1]
    if own.model_settings.get("planes", planes) != planes:
        raise CheckpointError(
            f"{trained.file}: expected a model of {planes} planes, got {own.model_settings}"
        )
    return loss_on_clips(clips, own.sampling, own.rank_weight)


def _counted(loss: Loss, bar: tqdm[NoReturn]) -> Loss:
    def counted(model: nn.Module) -> Tensor:
        bar.update()
        return loss(model)

    return counted


def _document(
    models: Mapping[str, Trained],
    found: Mapping[str, Surroundings],
    data: Clips,
    settings: Landscape,
) -> dict[str, object]:
    """All numbers, for other programs."""
    return {
        "dataset": str(data.label_list),
        "clips": len(data.clips.scores),
        "opinion_scores": "synthetic" if data.synthetic else "as in the label list",
        "landscape": asdict(settings.landscape),
        "seed": settings.seed,
        "samples": settings.samples,
        "positions": curve_positions(settings.landscape).tolist(),
        "models": [
            {
                "name": name,
                "checkpoint": str(models[name].file),
                "method": models[name].checkpoint.method,
                "seed": models[name].checkpoint.seed,
                "gamma": models[name].checkpoint.gamma,
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
    draw_curves(axes, curve_positions(settings.landscape), curves)
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
    positions, columns = curve_positions(settings.landscape), len(surfaces)
    figure = Figure(figsize=(4.2 * columns, 7.0), layout="constrained")
    for column, (name, surface) in enumerate(surfaces.items(), start=1):
        above = figure.add_subplot(2, columns, column)
        draw_contours(above, positions, positions, surface, limits)
        above.set_title(fill(name, _NAME_WIDTH), fontsize="medium")
        perspective = figure.add_subplot(2, columns, columns + column, projection="3d")
        draw_surface(perspective, positions, positions, surface, limits)
    figure.suptitle(title, fontsize="medium")
    return figure


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=150, format="png")


if __name__ == "__main__":
    with expected_errors_in_one_line():
        torch.set_num_threads(1)
        main(tyro.cli(Landscape, description=__doc__))
