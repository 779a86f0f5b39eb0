"""Table, CSV file and figure of the rows."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.generalization_grounds.comparison import Comparison
from benchmarks.generalization_grounds.ground import UNSEEN
from benchmarks.generalization_grounds.methods import PLAIN
from benchmarks.generalization_grounds.rows import ReportRow
from vqa.io.files import replacing

# Okabe and Ito's colours, told apart by everybody: ordinary, RWP, SAM, AWP, AWP in one pass, both.
_GREY, _ORANGE, _GREEN, _BLUE, _SKY, _PINK = (
    "#555555", "#e69f00", "#009e73", "#0072b2", "#56b4e9", "#cc79a7",
)  # fmt: skip
_MOST_BESIDE = 4
_STYLES: Mapping[str, tuple[str, str]] = {
    "fewer-steps": (_GREY, "v"),
    "double": (_GREY, ">"),
    "dropout": (_GREY, "D"),
    "weight-decay": (_GREY, "s"),
    "rwp": (_ORANGE, "o"),
    "rwp-awp-gamma": (_ORANGE, "x"),
    "sam": (_GREEN, "o"),
    "awp": (_BLUE, "o"),
    "awp-3": (_BLUE, "^"),
    "awp-every-2": (_BLUE, "s"),
    "awp-every-4": (_BLUE, "D"),
    "awp-every-8": (_BLUE, "v"),
    "awp-element": (_BLUE, "P"),
    "awp-last-2": (_BLUE, "1"),
    "awp-last-1": (_BLUE, "2"),
    "awp-late": (_BLUE, "x"),
    "awp-quarter": (_BLUE, ">"),
    "awp-previous": (_SKY, "o"),  # of earlier results, as "ordinary+previous": it is gone
    "awp-update": (_SKY, "^"),
    "ordinary+awp": (_PINK, "o"),
    "ordinary+previous": (_PINK, "s"),
    "ordinary+update": (_PINK, "^"),
    "ridge": (_GREY, "_"),
    "svr": (_GREY, "1"),
}


def markdown_table(rows: Sequence[ReportRow], metric: str) -> str:
    """The rows of one ground."""
    lines = [
        f"| method | chosen | test {metric} | difference to plain (95 %) | better on | p | p (Holm)"
        f" | train {metric} | passes | CPU time |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        scores = f"| {row.title} | {row.setting} | {row.score:.3f} ± {row.spread:.3f} "
        costs = f"| {row.train_score:.3f} | {row.passes:.2f} | {row.cpu_time:.2f} |"
        test = "| | | | "
        if row.p_value is not None:
            test = (
                f"| {row.difference:+.3f} ({row.low:+.3f} to {row.high:+.3f})"
                f" | {row.wins} of {row.n} | {row.p_value:.2g} | {row.p_holm:.2g} "
            )
        lines.append(scores + test + costs)
    return "\n".join(lines)


def sentences(comparisons: Sequence[Comparison], titles: Mapping[str, str]) -> list[str]:
    """The contrasts in words, read off the numbers."""
    lines = []
    for test in comparisons:
        clear = test.p_holm < 0.05
        verdict = (
            ("better than" if test.difference > 0 else "worse than")
            if clear
            else ("not clearly different from")
        )
        lines.append(
            f"{titles[test.method]} is {verdict} {titles[test.baseline]}:"
            f" {test.difference:+.3f} ({test.low:+.3f} to {test.high:+.3f}),"
            f" p = {test.p_value:.2g}, {test.p_holm:.2g} after Holm's correction"
        )
    return lines


def write_csv(path: Path, rows: Sequence[ReportRow]) -> None:
    """One line for each ground and method."""
    with replacing(path) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def write_figure(path: Path, rows: Mapping[str, Sequence[ReportRow]]) -> None:
    """Benefit against cost with paired 95 % intervals, one panel for each ground."""
    figure, panels = _panels(len(rows))
    for axes, (ground, own) in zip(panels, rows.items(), strict=True):
        draw_benefit(axes, own)
        axes.set_title(f"{ground}, {own[0].n} seeds", fontsize="medium")
    panels[0].set_ylabel("test score minus plain's, mean and paired 95 % interval")
    _save(path, figure, panels)


def draw_benefit(axes: Axes, rows: Sequence[ReportRow]) -> None:
    """Difference to plain over passes for the rows of one ground."""
    axes.axhline(0, color="black", linewidth=0.8)
    others = [row for row in rows if row.method != PLAIN and row.passes > 0]
    for row, place in zip(others, _places(others), strict=True):
        colour, marker = _STYLES[row.method]
        reach = [[row.difference - row.low], [row.high - row.difference]]
        axes.errorbar(
            place, row.difference, reach, fmt=marker, color=colour, label=_general(row),
            markersize=6, capsize=2, linewidth=0.8,
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("forward and backward passes of the training, plain = 1")


def _panels(number: int) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, at most four beside each other."""
    columns = _columns(number)
    lines = -(-number // columns)
    figure = Figure(figsize=(1.5 + 4.2 * columns, 1.5 + 5 * lines), layout="constrained")
    every = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in every[number:]:
        axes.remove()
    return figure, every[:number]


def _columns(number: int) -> int:
    """How many panels stand beside each other where no line is left nearly empty."""
    return -(-number // -(-number // _MOST_BESIDE))


def _save(path: Path, figure: Figure, panels: Sequence[Axes]) -> None:
    """With one legend for all panels."""
    by_label = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    columns = 2 * _columns(len(panels)) - 1
    figure.legend(
        by_label.values(), by_label, loc="outside lower center", ncols=columns, fontsize="small"
    )
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=110, format="png")


def write_transfer_figure(
    path: Path,
    rows: Mapping[str, Sequence[ReportRow]],
    also: Mapping[str, Mapping[str, Sequence[ReportRow]]],
) -> None:
    """Benefit within against benefit across: a panel for each source, a point for each method."""
    figure, panels = _panels(len(also))
    for axes, (ground, further) in zip(panels, also.items(), strict=True):
        draw_transfer(axes, rows[ground], across(further))
        axes.set_title(f"trained on {ground}, {rows[ground][0].n} seeds", fontsize="medium")
    panels[0].set_ylabel("the same on both data sets never seen, mean")
    _save(path, figure, panels)


def across(also: Mapping[str, Sequence[ReportRow]]) -> dict[str, float]:
    """By method, the difference to plain on unseen data sets, mean over them."""
    unseen = [
        own for what, own in also.items() if what.startswith(UNSEEN) and not what.endswith("PLCC")
    ]
    return {
        same[0].method: statistics.mean(row.difference for row in same)
        for same in zip(*unseen, strict=True)
    }


def draw_transfer(axes: Axes, rows: Sequence[ReportRow], differences: Mapping[str, float]) -> None:
    """Difference to plain on unseen data sets over that on the source's test part."""
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axvline(0, color="black", linewidth=0.8)
    for row in rows:
        if row.method != PLAIN:
            colour, marker = _STYLES[row.method]
            axes.plot(
                row.difference, differences[row.method], marker, color=colour, label=_general(row)
            )
    axes.set_xlabel("SRCC minus plain's on the source's test part")


def _places(rows: Sequence[ReportRow]) -> list[float]:
    """Passes of each row; rows that have as many stand side by side."""
    peers = [[other.method for other in rows if other.passes == row.passes] for row in rows]
    return [
        row.passes * 2 ** (0.1 * (own.index(row.method) - (len(own) - 1) / 2))
        for row, own in zip(rows, peers, strict=True)
    ]


def _general(row: ReportRow) -> str:
    """A title that is right on every ground, whichever its best ordinary regulariser."""
    if row.method.startswith("ordinary+"):
        return "best ordinary regulariser + " + row.title.split(" + ", 1)[1]
    return row.title
