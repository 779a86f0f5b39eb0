"""The paper's Tables 1 to 13 and Figures 1 to 4: which training fills which cell or curve.

What the figures show is known to us in words only, and they carry no numbers; see `_figures`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from vqa.reproduction.trainings import Training

REPORTED = Path(__file__).with_name("tables.json")

Perturb = Literal["none", "rwp", "awp"]


@dataclass(frozen=True)
class Cell:
    """One number of a table."""

    column: str
    reported: float | None
    """The paper's number; None where its table has none."""
    training: Training | None
    """None for a method of another paper, which is cited and never run here."""
    part: str
    """Part, or further data set, of the run's results."""
    metric: str


@dataclass(frozen=True)
class TableRow:
    """One line of a table."""

    label: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """One table of the paper."""

    name: str
    title: str
    rows: tuple[TableRow, ...]


@dataclass(frozen=True)
class Curve:
    """The loss around the weights of one model."""

    label: str
    training: Training


@dataclass(frozen=True)
class Panel:
    """Curves in one axes."""

    title: str
    curves: tuple[Curve, ...]


@dataclass(frozen=True)
class LossFigure:
    """One figure: loss landscapes of models side by side."""

    name: str
    title: str
    panels: tuple[Panel, ...]


Exhibit = Table | LossFigure

_Rows = Sequence[Mapping[str, Any]]

_SCRIPTS = {"SimpleVQA": "simple_vqa", "FAST-VQA": "fast_vqa", "SAMA": "sama_vqa"}
_IMAGE_SCRIPTS = {"SAMA": "sama_iqa"}
_DATASETS = {
    "KoNViD-1k": "konvid-1k",
    "LIVE-VQC": "live-vqc",
    "YouTube-UGC": "youtube-ugc",
    "KonIQ-10k": "koniq-10k",
    "SPAQ": "spaq",
}
# Parts of the results of a model trained on LSVQ, by column.
_LSVQ_PARTS = {
    "LSVQ_test": "test",
    "LSVQ_1080p": "lsvq-1080p",
    "KoNViD-1k": "konvid-1k",
    "LIVE-VQC": "live-vqc",
}
_AUGMENTATIONS = {"base": "none", "AuA": "auto", "RA": "rand", "TA": "trivial"}
_METRICS = ("srcc", "plcc")
_AWP_GAMMA = 1e-4
_TEN_SPLITS = tuple(range(10))


def catalogue() -> dict[str, Exhibit]:
    """Every table and figure by name, `table1` to `table13` and `figure1` to `figure4`."""
    reported = json.loads(REPORTED.read_text(encoding="utf-8"))
    exhibits: list[Exhibit] = []
    for name, make in _TABLES.items():
        what, rows = reported[name]["what"], reported[name]["rows"]
        of = ", ".join(reported[name][key] for key in ("model", "dataset") if key in reported[name])
        exhibits.append(Table(name, f"{what} ({of})" if of else what, make(rows)))
    return {exhibit.name: exhibit for exhibit in (*exhibits, *_figures())}


def analysed(
    dataset: str,
    perturb: Perturb = "none",
    gamma: float = 0.0,
    weight_decay: float = 0.05,
    augmentation: str = "none",
    epochs: int | None = None,
) -> Training:
    """FAST-VQA as it is, or with one of the settings that tables vary; all of these are named.

    >>> analysed("konvid-1k", "awp", 1e-3) == analysed("konvid-1k", "awp", 0.001)
    True
    >>> analysed("konvid-1k", "awp", 0.0) == analysed("konvid-1k", "rwp", 0.0)
    True
    """
    flags = (
        *_perturbation(perturb, gamma),
        *("--weight-decay", f"{weight_decay:g}", "--augmentation", augmentation),
        *(() if epochs is None else ("--epochs", str(epochs))),
    )
    return Training("fast_vqa", "paper", dataset, flags)


def _perturbation(perturb: Perturb, gamma: float) -> tuple[str, ...]:
    if perturb == "none" or gamma == 0:  # nothing moves: the same run whatever it is called
        return ("--perturb", "none")
    steps = ("--steps", "1") if perturb == "awp" else ()
    return ("--perturb", perturb, "--gamma", f"{gamma:g}", *steps)


def _model(script: str, dataset: str) -> Training:
    """A model as it is, on a small data set."""
    if script == "fast_vqa":
        return analysed(dataset)
    return Training(script, "paper", dataset, _perturbation("none", 0.0))


def _on_lsvq(script: str, gamma: float) -> Training:
    named = analysed("lsvq", "awp", gamma).flags
    flags = named if script == "fast_vqa" else _perturbation("awp", gamma)
    # The tables do not ask for the score of the 28,056 training videos.
    return Training(
        script, "paper", "lsvq", (*flags, "--no-train-score"), ("konvid-1k", "live-vqc")
    )


def _fine_tuned(script: str, gamma: float, dataset: str) -> Training:
    """From weights trained on LSVQ with (or without) AWP; fine-tuning itself is plain."""
    start = _on_lsvq(script, gamma)
    return Training(script, "finetune", dataset, _perturbation("none", 0.0), start=start)


def _on_images(script: str, gamma: float, dataset: str) -> Training:
    # KonIQ-10k has official parts, too, which the ten random splits leave aside.
    random_splits = ("--official-parts", "ignore", "--protocol", "sama")
    flags = (*_perturbation("awp", gamma), *random_splits)
    return Training(script, "paper", dataset, flags, splits=_TEN_SPLITS)


def _gap_cells(row: Mapping[str, Any], training: Training) -> tuple[Cell, ...]:
    return tuple(
        Cell(f"{part} {metric.upper()}", row[metric][part], training, part, metric)
        for metric in _METRICS
        for part in ("train", "test", "gap")
    )


def _cross_cells(row: Mapping[str, Any], training: Training | None) -> tuple[Cell, ...]:
    """Scores on LSVQ's test parts and on data sets that the model was not trained on."""
    return tuple(
        Cell(f"{column} {metric.upper()}", row[column][metric], training, part, metric)
        for column, part in _LSVQ_PARTS.items()
        for metric in _METRICS
    )


def _test_cells(
    row: Mapping[str, Any], training: Callable[[str], Training] | None
) -> tuple[Cell, ...]:
    """Scores on the test parts of data sets, on each of which a model of its own was trained."""
    return tuple(
        Cell(
            f"{column} {metric.upper()}",
            row[column][metric],
            None if training is None else training(_DATASETS[column]),
            "test",
            metric,
        )
        for column in row
        if column in _DATASETS
        for metric in _METRICS
    )


def _methods(rows: _Rows) -> tuple[TableRow, ...]:
    return tuple(
        TableRow(row["method"], _gap_cells(row, _model(_SCRIPTS[row["method"]], "konvid-1k")))
        for row in rows
    )


def _weight_decays(dataset: str, rows: _Rows) -> tuple[TableRow, ...]:
    return tuple(
        TableRow(
            f"weight decay {row['weight_decay']:g}",
            _gap_cells(row, analysed(dataset, weight_decay=row["weight_decay"])),
        )
        for row in rows
    )


def _augmentations(dataset: str, rows: _Rows) -> tuple[TableRow, ...]:
    return tuple(
        TableRow(
            row["augmentation"],
            _gap_cells(row, analysed(dataset, augmentation=_AUGMENTATIONS[row["augmentation"]])),
        )
        for row in rows
    )


def _gammas(perturb: Perturb, dataset: str, rows: _Rows) -> tuple[TableRow, ...]:
    return tuple(
        TableRow(
            f"gamma {row['gamma']:g}", _gap_cells(row, analysed(dataset, perturb, row["gamma"]))
        )
        for row in rows
    )


def _lsvq_gammas(rows: _Rows) -> tuple[TableRow, ...]:
    return tuple(
        TableRow(f"gamma {row['gamma']:g}", _cross_cells(row, _on_lsvq("fast_vqa", row["gamma"])))
        for row in rows
    )


def _trained_on_lsvq(rows: _Rows) -> tuple[TableRow, ...]:
    made = []
    for row in rows:
        script = _SCRIPTS.get(row["method"])
        training = None if script is None else _on_lsvq(script, _gamma(row))
        made.append(TableRow(_label(row, _SCRIPTS), _cross_cells(row, training)))
    return tuple(made)


def _per_dataset(
    scripts: Mapping[str, str], training: Callable[[str, float, str], Training], rows: _Rows
) -> tuple[TableRow, ...]:
    made = []
    for row in rows:
        script = scripts.get(row["method"])
        own = None if script is None else partial(training, script, _gamma(row))
        made.append(TableRow(_label(row, scripts), _test_cells(row, own)))
    return tuple(made)


def _gamma(row: Mapping[str, Any]) -> float:
    return _AWP_GAMMA if row["awp"] else 0.0


def _label(row: Mapping[str, Any], scripts: Mapping[str, str]) -> str:
    if row["method"] not in scripts:
        return f"{row['method']} (cited)"
    return f"{row['method']} + AWP" if row["awp"] else str(row["method"])


_TABLES: Mapping[str, Callable[[_Rows], tuple[TableRow, ...]]] = {
    "table1": _methods,
    "table2": partial(_weight_decays, "konvid-1k"),
    "table3": partial(_augmentations, "konvid-1k"),
    "table4": partial(_gammas, "rwp", "konvid-1k"),
    "table5": partial(_gammas, "awp", "konvid-1k"),
    "table6": _trained_on_lsvq,
    "table7": partial(_per_dataset, _SCRIPTS, _fine_tuned),
    "table8": partial(_per_dataset, _IMAGE_SCRIPTS, _on_images),
    "table9": _lsvq_gammas,
    "table10": partial(_weight_decays, "youtube-ugc"),
    "table11": partial(_augmentations, "youtube-ugc"),
    "table12": partial(_gammas, "rwp", "youtube-ugc"),
    "table13": partial(_gammas, "awp", "youtube-ugc"),
}


def _figures() -> tuple[LossFigure, ...]:
    """Landscapes that carry the paper's argument, arranged by us.

    Figure 1 has epochs of one model and several models; Figures 2 and 3 the four ways to flatten
    on KoNViD-1k, Figure 4 the same on YouTube-UGC. "Epochs" are trainings of that length, each with
    its whole learning-rate schedule, because a training keeps the weights of its chosen epoch only.
    """
    konvid, youtube = "konvid-1k", "youtube-ugc"
    epochs = (
        *(Curve(f"{number} epochs", analysed(konvid, epochs=number)) for number in (5, 10, 20)),
        Curve("all epochs", analysed(konvid)),
    )
    models = tuple(Curve(name, _model(script, konvid)) for name, script in _SCRIPTS.items())
    return (
        LossFigure(
            "figure1",
            "loss landscape across epochs and across models (KoNViD-1k)",
            (Panel("FAST-VQA, length of training", epochs), Panel("models", models)),
        ),
        LossFigure(
            "figure2",
            "loss landscape by weight decay and augmentation (FAST-VQA, KoNViD-1k)",
            (_weight_decay_panel(konvid), _augmentation_panel(konvid)),
        ),
        LossFigure(
            "figure3",
            "loss landscape by weight perturbation (FAST-VQA, KoNViD-1k)",
            (_gamma_panel("rwp", konvid), _gamma_panel("awp", konvid)),
        ),
        LossFigure(
            "figure4",
            "loss landscape by all four ways (FAST-VQA, YouTube-UGC)",
            (
                _weight_decay_panel(youtube),
                _augmentation_panel(youtube),
                _gamma_panel("rwp", youtube),
                _gamma_panel("awp", youtube),
            ),
        ),
    )


def _weight_decay_panel(dataset: str) -> Panel:
    values = (0.0, 0.0005, 0.005, 0.05, 0.5)
    return Panel(
        "weight decay",
        tuple(
            Curve(f"weight decay {value:g}", analysed(dataset, weight_decay=value))
            for value in values
        ),
    )


def _augmentation_panel(dataset: str) -> Panel:
    return Panel(
        "augmentation",
        tuple(
            Curve(label, analysed(dataset, augmentation=value))
            for label, value in _AUGMENTATIONS.items()
        ),
    )


def _gamma_panel(perturb: Literal["rwp", "awp"], dataset: str) -> Panel:
    values = (0.0, 1e-5, 1e-4, 1e-3) + ((1e-2,) if (perturb, dataset) != _NOT_REPORTED else ())
    return Panel(
        perturb.upper(),
        tuple(Curve(f"gamma {value:g}", analysed(dataset, perturb, value)) for value in values),
    )


# Table 13 has no row for AWP with gamma 0.01 on YouTube-UGC.
_NOT_REPORTED = ("awp", "youtube-ugc")
