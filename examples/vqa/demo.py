"""Trainings by several methods from several seeds, each done once, and what came out of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from vqa.datasets import DataSet
from vqa.figures import draw_curves, draw_seeds
from vqa.io.files import digest, replacing, write_csv, write_json
from vqa.metrics import paired_difference, summarise
from vqa.processes import process_pool, progress_bar
from vqa.store import Results, Store
from vqa.training.checkpoint import run_config
from vqa.training.main import run_script
from vqa.training.settings import METHOD_NAMES, Method, Settings, plain
from vqa.training.split_samples import parts_of
from vqa.training.task import Task

# Makes the task of the settings of its script.
TaskOf = Callable[[Any], Task]


@dataclass(frozen=True)
class Run:
    """One call of a training script, by what decides its result."""

    settings: Settings
    name: str
    split: int


def run_of(settings: Settings, task: TaskOf, dataset: DataSet, source: object) -> Run:
    """A run on the first split that the settings ask for, of the data set that they name.

    Where the results go is decided by the store. `source` is what else decides a result, as plain
    values: code and versions.
    """
    split = settings.splits[0]
    parts = parts_of(dataset, {}, settings, split)
    samples = {"train": parts.train, "validation": parts.validation, "test": parts.test}
    config = run_config(settings, split, {**samples, **parts.also}, task(settings).files)
    decides = digest([plain(replace(settings, output=None)), config, source])
    return Run(settings, f"{settings.method}-{settings.seed}-{decides[:16]}", split)


def run_all(runs: Sequence[Run], task: TaskOf, store: Store, processes: int) -> list[Results]:
    """The results of all runs, from the store where they are finished already.

    What a run prints is in its log. A small model gains nothing from a second thread, and with one
    thread a result does not depend on how many runs go on beside it. They have processes of their
    own, to which `task` can be sent, unless one goes on at a time.
    """
    missing = [run for run in runs if store.results(run) is None]
    with progress_bar("training", len(missing), "run") as bar:
        if processes == 1:
            for run in missing:
                _do(run, task, store)
                bar.update()
        elif missing:
            with process_pool(processes) as pool:
                for future in as_completed([pool.submit(_do, run, task, store) for run in missing]):
                    future.result()
                    bar.update()
    return [results for run in runs if (results := store.results(run)) is not None]


def _do(run: Run, task: TaskOf, store: Store) -> None:
    store.note(run, {"settings": plain(run.settings)})
    settings = replace(run.settings, output=store.folder(run))
    with (
        store.log(run).open("a", encoding="utf-8") as log,
        redirect_stdout(log),
        redirect_stderr(log),
    ):
        run_script(settings, task(settings))


# Told apart by everybody.
_COLOURS: dict[Method, str] = {
    "plain": "#555555",
    "rwp": "#e69f00",
    "awp": "#0072b2",
    "awp-update": "#009e73",
}

# Below this two-sided p value a difference is called one; printed with it every time.
_LEVEL = 0.05

_PARTS = {"train": "train", "test": "test", "gap": "gap", "ood": "mini-ugc-ood"}

# Of every method, ordered by seed.
Runs = Mapping[Method, Sequence[Results]]


def by_method(results: Sequence[Results]) -> dict[Method, list[Results]]:
    """Results of each method, ordered by seed."""
    runs: dict[Method, list[Results]] = {method: [] for method in METHOD_NAMES}
    for own in sorted(results, key=_seed):
        perturb = own.document["settings"]["perturb"]
        runs["plain" if perturb == "none" else perturb].append(own)
    return {method: own for method, own in runs.items() if own}


def table(runs: Runs) -> str:
    """One line per quantity, one column per method: mean, spread, and difference to plain.

    The difference is taken seed by seed; `p` is that of a two-sided paired t-test.
    """
    summary = _summary(runs)
    lines = [_row("", [METHOD_NAMES[method] for method in runs])]
    for column in next(iter(summary.values())):
        entries = [own[column] for own in summary.values()]
        lines.append(_row(column, [f"{own['mean']:.3f} ± {own['spread']:.3f}" for own in entries]))
        differences = [own.get("minus_plain") for own in entries]
        if any(differences):
            lines.append(_row("  - plain", [_difference_text(own) for own in differences]))
    return "\n".join(lines)


def conclusions(runs: Runs) -> list[str]:
    """Sentences about every perturbed method against plain, read off the numbers."""
    sentences = []
    summary = _summary(runs)
    for method, own in summary.items():
        if method == "plain" or "plain" not in summary:
            continue
        gap, test, ood = (own[f"{part} SRCC"]["minus_plain"] for part in ("gap", "test", "ood"))
        sharpness, step = (
            own[column]["mean"] / summary["plain"][column]["mean"]
            for column in ("sharpness", "ms / step")
        )
        sentences.append(
            f"{METHOD_NAMES[method]}: the train-test gap in SRCC is"
            f" {_verdict(gap, 'smaller', 'larger')};"
            f" the test SRCC is {_verdict(test, 'lower', 'higher')};"
            f" out of domain it is {_verdict(ood, 'lower', 'higher')};"
            f" sharpness is {sharpness:.2f} times that of plain, a step"
            f" takes {step:.2f} times as long."
        )
    return sentences


def write_results(folder: Path, runs: Runs, description: Mapping[str, object]) -> list[Path]:
    """Write `results.json`, with every number of the others, `results.csv` and `figure.png`."""
    documents = [
        {
            "method": method,
            "seed": _seed(run),
            "gamma": run.document["settings"]["gamma"],
            **_numbers(run),
            "landscape": run.landscape,
        }
        for method, own in runs.items()
        for run in own
    ]
    document = {
        **description,
        "summary": _summary(runs),
        "conclusions": conclusions(runs),
        "runs": documents,
    }
    paths = [folder / name for name in ("results.json", "results.csv", "figure.png")]
    write_json(paths[0], document)
    columns = [name for name in documents[0] if name not in ("gamma", "landscape")]
    write_csv(paths[1], columns, ([own[name] for name in columns] for own in documents))
    draw_figure(paths[2], runs)
    return paths


def draw_figure(path: Path, runs: Runs) -> None:
    """Gap and test score of every run, and the training loss around the trained weights."""
    # Not through pyplot, which would pick a window system and keep the figure alive.
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    gaps, tests, losses = figure.subplots(1, 3)
    colours = [_COLOURS[method] for method in runs]
    for axes, column, label in (
        (gaps, "gap SRCC", "train - test SRCC (lower is better)"),
        (tests, "test SRCC", "test SRCC (higher is better)"),
    ):
        values = {METHOD_NAMES[own]: [_numbers(run)[column] for run in runs[own]] for own in runs}
        draw_seeds(axes, values, colours)
        axes.set_ylabel(label)
    curves = {
        METHOD_NAMES[method]: torch.tensor([run.landscape["losses"] for run in own])
        for method, own in runs.items()
    }
    positions = next(iter(runs.values()))[0].landscape["positions"]
    draw_curves(losses, torch.tensor(positions, dtype=torch.float64), curves, colours)
    losses.set_ylabel("training loss (band: all seeds)")
    figure.suptitle("mini-UGC: real .mp4 files, synthetic opinion scores", fontsize="medium")
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=150, format="png")


def _seed(run: Results) -> int:
    return int(run.document["settings"]["seed"])


def _numbers(run: Results) -> dict[str, float]:
    """What is compared of a run, by column."""
    numbers = {
        f"{name} {metric.upper()}": run.score(part, metric)
        for metric in ("srcc", "plcc")
        for name, part in _PARTS.items()
    }
    return {**numbers, "sharpness": run.sharpness, "ms / step": 1e3 * run.step_seconds}


def _summary(runs: Runs) -> dict[Method, dict[str, dict[str, Any]]]:
    """Per method and column: mean and spread, and the paired difference to plain."""
    numbers = {method: [_numbers(run) for run in own] for method, own in runs.items()}
    summary: dict[Method, dict[str, dict[str, Any]]] = {}
    for method, own in numbers.items():
        summary[method] = {}
        for column in own[0]:
            values = [row[column] for row in own]
            entry: dict[str, Any] = asdict(summarise(values))
            if method != "plain" and "plain" in numbers:
                base = [row[column] for row in numbers["plain"]]
                entry["minus_plain"] = asdict(paired_difference(values, base))
            summary[method][column] = entry
    return summary


def _difference_text(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return ""
    p_value = difference["p_value"]
    p_text = "" if math.isnan(p_value) else f" p={p_value:.2g}"
    return f"{difference['mean']:+.3f}{p_text}"


def _verdict(difference: Mapping[str, Any], below: str, above: str) -> str:
    """What the difference allows to say, with the numbers it rests on."""
    mean, falls, seeds = difference["mean"], difference["falls"], difference["n"]
    word, agreeing = (below, falls) if mean < 0 else (above, seeds - falls)
    clear = difference["p_value"] < _LEVEL
    return (
        f"{word if clear else 'not clearly different'} ({mean:+.3f},"
        f" {word} on {agreeing} of {seeds} seeds, p = {difference['p_value']:.2g})"
    )


def _row(name: str, cells: Sequence[str]) -> str:
    return f"{name:<11}" + "".join(f"{cell:>24}" for cell in cells)
