"""The paper's Tables 1 to 13 and Figures 1 to 4: which training fills which cell or curve.

What the figures show is known to us in words only, and they carry no numbers; see `_figures`.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from vqa.reproduction.runs import PlannedRun

REPORTED = Path(__file__).with_name("tables.json")

Perturb = Literal["none", "rwp", "awp"]


@dataclass(frozen=True)
class Cell:
    """One number of a table, or of the table that is written beside a figure."""

    label: str  # of the row, or of the curve in a figure
    column: str
    training: PlannedRun | None  # None for a method of another paper, cited and never run here
    part: str  # part, or further data set, of the run's results
    metric: str  # of that part; `sharpness` is that of the loss around the weights
    reported: float | None = None  # the paper's number; None where it has none
    panel: str = ""  # the axes of a figure in which the training has its curve

    @property
    def row(self) -> str:
        return f"{self.panel}: {self.label}" if self.panel else self.label


Cells = tuple[Cell, ...]


@dataclass(frozen=True)
class Exhibit:
    """One table of the paper; or one figure, with loss landscapes of models side by side."""

    name: str
    title: str
    cells: Cells  # row by row, every row with the same columns


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
    more: tuple[str, ...] = (),
) -> PlannedRun:
    """FAST-VQA as it is, or with one of the settings that tables vary; all of these are named."""
    named = ("--weight-decay", f"{weight_decay:g}", "--augmentation", augmentation)
    flags = (*_perturbation(perturb, gamma), *named, *more)
    return PlannedRun("fast_vqa", "paper", dataset, flags)


def _perturbation(perturb: Perturb, gamma: float) -> tuple[str, ...]:
    if perturb == "none" or gamma == 0:  # nothing moves: the same run whatever it is called
        return ("--perturb", "none")
    steps = ("--steps", "1") if perturb == "awp" else ()
    return ("--perturb", perturb, "--gamma", f"{gamma:g}", *steps)


def _varied(dataset: str, setting: str, value: Any) -> tuple[str, PlannedRun]:
    """Label and training of FAST-VQA with one of the settings that tables and figures vary."""
    if setting == "weight decay":
        return f"weight decay {value:g}", analysed(dataset, weight_decay=value)
    if setting == "augmentation":
        return value, analysed(dataset, augmentation=_AUGMENTATIONS[value])
    return f"gamma {value:g}", analysed(dataset, "rwp" if setting == "RWP" else "awp", value)


def _on_konvid(script: str) -> PlannedRun:
    """A model as it is."""
    if script == "fast_vqa":
        return analysed("konvid-1k")
    return PlannedRun(script, "paper", "konvid-1k", _perturbation("none", 0.0))


def _on_lsvq(script: str, gamma: float) -> PlannedRun:
    named = analysed("lsvq", "awp", gamma).flags
    flags = named if script == "fast_vqa" else _perturbation("awp", gamma)
    # The tables do not ask for the score of the 28,056 training videos.
    flags = (*flags, "--no-train-score")
    return PlannedRun(script, "paper", "lsvq", flags, ("konvid-1k", "live-vqc"))


def _fine_tuned(script: str, gamma: float, dataset: str) -> PlannedRun:
    """From weights trained on LSVQ with (or without) AWP; fine-tuning itself is plain."""
    start = _on_lsvq(script, gamma)
    return PlannedRun(script, "finetune", dataset, _perturbation("none", 0.0), start=start)


def _on_images(script: str, gamma: float, dataset: str) -> PlannedRun:
    # KonIQ-10k has official parts, too, which the ten random splits leave aside.
    random_splits = ("--official-parts", "ignore", "--protocol", "sama")
    return PlannedRun(script, "paper", dataset, (*_perturbation("awp", gamma), *random_splits))


def _gap_cells(row: _Row, label: str, training: PlannedRun) -> Cells:
    return tuple(
        Cell(label, f"{part} {metric.upper()}", training, part, metric, row[metric][part])
        for metric in _METRICS
        for part in ("train", "test", "gap")
    )


def _of_a_method(row: _Row) -> Cells:
    return _gap_cells(row, row["method"], _on_konvid(_SCRIPTS[row["method"]]))


def _of_a_value(dataset: str, setting: str, key: str, row: _Row) -> Cells:
    return _gap_cells(row, *_varied(dataset, setting, row[key]))


def _trained_on_lsvq(row: _Row) -> Cells:
    """Scores on LSVQ's test parts and on data sets that the model was not trained on."""
    script = _SCRIPTS.get(row.get("method", "FAST-VQA"))
    training = None if script is None else _on_lsvq(script, _gamma(row))
    label = _label(row, script)
    return tuple(
        Cell(label, f"{column} {metric.upper()}", training, part, metric, row[column][metric])
        for column, part in _LSVQ_PARTS.items()
        for metric in _METRICS
    )


def _per_dataset(
    scripts: Mapping[str, str], training: Callable[[str, float, str], PlannedRun], row: _Row
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
    return float(row.get("gamma", 1e-4 if row.get("awp") else 0.0))


def _label(row: _Row, script: str | None) -> str:
    if "gamma" in row:
        return f"gamma {row['gamma']:g}"
    if script is None:
        return f"{row['method']} (cited)"
    return f"{row['method']} + AWP" if row["awp"] else str(row["method"])


# What makes the cells of a row.
_TABLES: Mapping[str, Callable[[_Row], Cells]] = {
    "table1": _of_a_method,
    "table2": partial(_of_a_value, "konvid-1k", "weight decay", "weight_decay"),
    "table3": partial(_of_a_value, "konvid-1k", "augmentation", "augmentation"),
    "table4": partial(_of_a_value, "konvid-1k", "RWP", "gamma"),
    "table5": partial(_of_a_value, "konvid-1k", "AWP", "gamma"),
    "table6": _trained_on_lsvq,
    "table7": partial(_per_dataset, _SCRIPTS, _fine_tuned),
    "table8": partial(_per_dataset, _IMAGE_SCRIPTS, _on_images),
    "table9": _trained_on_lsvq,
    "table10": partial(_of_a_value, "youtube-ugc", "weight decay", "weight_decay"),
    "table11": partial(_of_a_value, "youtube-ugc", "augmentation", "augmentation"),
    "table12": partial(_of_a_value, "youtube-ugc", "RWP", "gamma"),
    "table13": partial(_of_a_value, "youtube-ugc", "AWP", "gamma"),
}


def _figures() -> Iterator[Exhibit]:
    """Landscapes that carry the paper's argument, arranged by us.

    "Epochs" are trainings of that length, each with its whole learning-rate schedule, because a
    training keeps the weights of its chosen epoch only.
    """
    epochs = {f"{n} epochs": analysed("konvid-1k", more=("--epochs", n)) for n in ("5", "10", "20")}
    epochs["all epochs"] = analysed("konvid-1k")
    models = {name: _on_konvid(script) for name, script in _SCRIPTS.items()}
    gammas = (0.0, 1e-5, 1e-4, 1e-3, 1e-2)
    settings: dict[str, Iterable[Any]] = {
        "weight decay": (0.0, 0.0005, 0.005, 0.05, 0.5),
        "augmentation": _AUGMENTATIONS,
    }
    # Table 13 has no row for AWP with gamma 0.01 on YouTube-UGC.
    all_four = {**settings, "RWP": gammas, "AWP": gammas[:-1]}
    cells_by_title = {
        "across epochs and across models (KoNViD-1k)": (
            _panel("FAST-VQA, length of training", epochs) + _panel("models", models)
        ),
        "by weight decay and augmentation (FAST-VQA, KoNViD-1k)": _panels("konvid-1k", settings),
        "by weight perturbation (FAST-VQA, KoNViD-1k)": (
            _panels("konvid-1k", {"RWP": gammas, "AWP": gammas})
        ),
        "by all four ways (FAST-VQA, YouTube-UGC)": _panels("youtube-ugc", all_four),
    }
    for number, (title, cells) in enumerate(cells_by_title.items(), start=1):
        yield Exhibit(f"figure{number}", f"loss landscape {title}", cells)


def _panels(dataset: str, settings: Mapping[str, Iterable[Any]]) -> Cells:
    """Axes for each setting, with a curve for each of its values."""
    cells: Cells = ()
    for setting, values in settings.items():
        cells += _panel(setting, dict(_varied(dataset, setting, value) for value in values))
    return cells


def _panel(title: str, trainings: Mapping[str, PlannedRun]) -> Cells:
    """Curves in one axes, by label, and the numbers beside them."""
    numbers = {
        "sharpness": ("", "sharpness"),
        "gap SRCC": ("gap", "srcc"),
        "test SRCC": ("test", "srcc"),
    }
    return tuple(
        Cell(label, column, training, part, metric, panel=title)
        for label, training in trainings.items()
        for column, (part, metric) in numbers.items()
    )
