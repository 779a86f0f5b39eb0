"""The paper's Tables 1 to 13 and Figures 1 to 4: which training fills which cell or curve.

What the figures show is known to us in words only, and they carry no numbers; see `_figures`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from vqa.reproduction.runs import Training

REPORTED = Path(__file__).with_name("tables.json")

Perturb = Literal["none", "rwp", "awp"]


@dataclass(frozen=True)
class Cell:
    """One number of a table, or of the table that is written beside a figure."""

    label: str
    """Of the row, or of the curve in a figure."""
    column: str
    training: Training | None
    """None for a method of another paper, which is cited and never run here."""
    part: str
    """Part, or further data set, of the run's results."""
    metric: str
    """Of that part; `sharpness` is that of the loss around the weights."""
    reported: float | None = None
    """The paper's number; None where it has none."""
    panel: str = ""
    """The axes of a figure in which the training has its curve."""

    @property
    def row(self) -> str:
        """What the row is called in reports."""
        return f"{self.panel}: {self.label}" if self.panel else self.label


Cells = tuple[Cell, ...]


@dataclass(frozen=True)
class Exhibit:
    """One table of the paper; or one figure, with loss landscapes of models side by side."""

    name: str
    title: str
    cells: Cells
    """Row by row, every row with the same columns."""


_Row = Mapping[str, Any]

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
    exhibits: dict[str, Exhibit] = {}
    for name, cells_of in _TABLES.items():
        own = reported[name]
        of = ", ".join(own[key] for key in ("model", "dataset") if key in own)
        title = f"{own['what']} ({of})" if of else own["what"]
        exhibits[name] = Exhibit(name, title, sum(map(cells_of, own["rows"]), ()))
    return exhibits | {figure.name: figure for figure in _figures()}


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
    flags = (*flags, "--no-train-score")
    return Training(script, "paper", "lsvq", flags, ("konvid-1k", "live-vqc"))


def _fine_tuned(script: str, gamma: float, dataset: str) -> Training:
    """From weights trained on LSVQ with (or without) AWP; fine-tuning itself is plain."""
    start = _on_lsvq(script, gamma)
    return Training(script, "finetune", dataset, _perturbation("none", 0.0), start=start)


def _on_images(script: str, gamma: float, dataset: str) -> Training:
    # KonIQ-10k has official parts, too, which the ten random splits leave aside.
    random_splits = ("--official-parts", "ignore", "--protocol", "sama")
    flags = (*_perturbation("awp", gamma), *random_splits)
    return Training(script, "paper", dataset, flags, splits=_TEN_SPLITS)


# The settings of FAST-VQA that tables and figures vary: label and training of a value.
Way = Callable[[str, Any], tuple[str, Training]]


def _weight_decay(dataset: str, value: float) -> tuple[str, Training]:
    return f"weight decay {value:g}", analysed(dataset, weight_decay=value)


def _augmentation(dataset: str, value: str) -> tuple[str, Training]:
    return value, analysed(dataset, augmentation=_AUGMENTATIONS[value])


def _rwp(dataset: str, value: float) -> tuple[str, Training]:
    return f"gamma {value:g}", analysed(dataset, "rwp", value)


def _awp(dataset: str, value: float) -> tuple[str, Training]:
    return f"gamma {value:g}", analysed(dataset, "awp", value)


def _gap_cells(row: _Row, label: str, training: Training) -> Cells:
    return tuple(
        Cell(label, f"{part} {metric.upper()}", training, part, metric, row[metric][part])
        for metric in _METRICS
        for part in ("train", "test", "gap")
    )


def _cross_cells(row: _Row, label: str, training: Training | None) -> Cells:
    """Scores on LSVQ's test parts and on data sets that the model was not trained on."""
    return tuple(
        Cell(label, f"{column} {metric.upper()}", training, part, metric, row[column][metric])
        for column, part in _LSVQ_PARTS.items()
        for metric in _METRICS
    )


def _of_a_method(row: _Row) -> Cells:
    return _gap_cells(row, row["method"], _model(_SCRIPTS[row["method"]], "konvid-1k"))


def _of_a_value(way: Way, setting: str, dataset: str, row: _Row) -> Cells:
    return _gap_cells(row, *way(dataset, row[setting]))


def _of_a_gamma_on_lsvq(row: _Row) -> Cells:
    return _cross_cells(row, f"gamma {row['gamma']:g}", _on_lsvq("fast_vqa", row["gamma"]))


def _trained_on_lsvq(row: _Row) -> Cells:
    script = _SCRIPTS.get(row["method"])
    training = None if script is None else _on_lsvq(script, _gamma(row))
    return _cross_cells(row, _label(row, script), training)


def _per_dataset(
    scripts: Mapping[str, str], training: Callable[[str, float, str], Training], row: _Row
) -> Cells:
    """Scores on the test parts of data sets, on each of which a model of its own was trained."""
    script = scripts.get(row["method"])
    cells = []
    for column, dataset in _DATASETS.items():
        own = None if script is None else training(script, _gamma(row), dataset)
        for metric, value in row.get(column, {}).items():
            head = f"{column} {metric.upper()}"
            cells.append(Cell(_label(row, script), head, own, "test", metric, value))
    return tuple(cells)


def _gamma(row: _Row) -> float:
    return _AWP_GAMMA if row["awp"] else 0.0


def _label(row: _Row, script: str | None) -> str:
    if script is None:
        return f"{row['method']} (cited)"
    return f"{row['method']} + AWP" if row["awp"] else str(row["method"])


# What makes the cells of a row.
_TABLES: Mapping[str, Callable[[_Row], Cells]] = {
    "table1": _of_a_method,
    "table2": partial(_of_a_value, _weight_decay, "weight_decay", "konvid-1k"),
    "table3": partial(_of_a_value, _augmentation, "augmentation", "konvid-1k"),
    "table4": partial(_of_a_value, _rwp, "gamma", "konvid-1k"),
    "table5": partial(_of_a_value, _awp, "gamma", "konvid-1k"),
    "table6": _trained_on_lsvq,
    "table7": partial(_per_dataset, _SCRIPTS, _fine_tuned),
    "table8": partial(_per_dataset, _IMAGE_SCRIPTS, _on_images),
    "table9": _of_a_gamma_on_lsvq,
    "table10": partial(_of_a_value, _weight_decay, "weight_decay", "youtube-ugc"),
    "table11": partial(_of_a_value, _augmentation, "augmentation", "youtube-ugc"),
    "table12": partial(_of_a_value, _rwp, "gamma", "youtube-ugc"),
    "table13": partial(_of_a_value, _awp, "gamma", "youtube-ugc"),
}

_DECAYS = (0.0, 0.0005, 0.005, 0.05, 0.5)
_GAMMAS = (0.0, 1e-5, 1e-4, 1e-3, 1e-2)


def _figures() -> tuple[Exhibit, ...]:
    """Landscapes that carry the paper's argument, arranged by us.

    Figure 1 has epochs of one model and several models; Figures 2 and 3 the four ways to flatten
    on KoNViD-1k, Figure 4 the same on YouTube-UGC. "Epochs" are trainings of that length, each with
    its whole learning-rate schedule, because a training keeps the weights of its chosen epoch only.
    """
    konvid, youtube = "konvid-1k", "youtube-ugc"
    epochs = {f"{number} epochs": analysed(konvid, epochs=number) for number in (5, 10, 20)}
    epochs["all epochs"] = analysed(konvid)
    models = {name: _model(script, konvid) for name, script in _SCRIPTS.items()}
    # Table 13 has no row for AWP with gamma 0.01 on YouTube-UGC.
    reported = _GAMMAS[:-1]
    return (
        Exhibit(
            "figure1",
            "loss landscape across epochs and across models (KoNViD-1k)",
            _panel("FAST-VQA, length of training", epochs) + _panel("models", models),
        ),
        Exhibit(
            "figure2",
            "loss landscape by weight decay and augmentation (FAST-VQA, KoNViD-1k)",
            _settings_panels(konvid),
        ),
        Exhibit(
            "figure3",
            "loss landscape by weight perturbation (FAST-VQA, KoNViD-1k)",
            _perturbation_panels(konvid, _GAMMAS),
        ),
        Exhibit(
            "figure4",
            "loss landscape by all four ways (FAST-VQA, YouTube-UGC)",
            _settings_panels(youtube) + _perturbation_panels(youtube, reported),
        ),
    )


def _settings_panels(dataset: str) -> Cells:
    decays = dict(_weight_decay(dataset, value) for value in _DECAYS)
    augmentations = dict(_augmentation(dataset, value) for value in _AUGMENTATIONS)
    return _panel("weight decay", decays) + _panel("augmentation", augmentations)


def _perturbation_panels(dataset: str, awp_gammas: tuple[float, ...]) -> Cells:
    random = dict(_rwp(dataset, value) for value in _GAMMAS)
    adversarial = dict(_awp(dataset, value) for value in awp_gammas)
    return _panel("RWP", random) + _panel("AWP", adversarial)


def _panel(title: str, trainings: Mapping[str, Training]) -> Cells:
    """Curves in one axes, by label, and the numbers beside them."""
    numbers = {"sharpness": ("", "sharpness")}
    numbers |= {f"{part} SRCC": (part, "srcc") for part in ("gap", "test")}
    return tuple(
        Cell(label, column, training, part, metric, panel=title)
        for label, training in trainings.items()
        for column, (part, metric) in numbers.items()
    )
