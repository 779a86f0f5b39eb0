"""Tables and a picture of what each way to fine-tune a pretrained network gained.

`python benchmarks/pretrained_report.py` reads `results/pretrained.json` and writes, beside it,
`pretrained.md`, a table for each study, and `pretrained.png`, which README shows: test SRCC minus
that of plain training on the same seeds, with the 95 % interval over seeds, of the methods that
have at least three.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
STUDIES = ("methods", "end", "controls")
FEWEST_SEEDS = 3
NAMES = {
    "awp": "AWP",
    "rwp": "RWP",
    "awp-update": 'ascent="update"',
    "awp-previous": 'ascent="previous"',
}
LEFT_OUT = ("awp-previous", "plain, epoch chosen")
SIZES = ("gamma", "dropout", "weight_decay", "backbone_factor")
INTRODUCTION = """# Fine-tuning pretrained networks

Written by `python benchmarks/pretrained_report.py` from [all numbers](pretrained.json); what was
trained, and what follows, is [told here](../README.md#a-pretrained-network). SRCC, means over
seeds; differences to plain training are taken seed by seed, with 95 % intervals over seeds and over
the test images; p by a paired t-test, then corrected by Holm over the ways of the study, bold
below 0.05. Each method's size was chosen by images left out of the training part, with other
seeds, fewer epochs and smaller squares. The backbone's learning rate is 2e-3, the head's, times the
backbone factor, 0.1 where nothing is said."""

Row = Mapping[str, Any]


def report(studies: Mapping[str, Row]) -> str:
    """The page: a table for each study."""
    return "\n\n".join([INTRODUCTION, *(section(*item) for item in studies.items())]) + "\n"


def section(name: str, study: Row) -> str:
    """Where and when a study was run, the gain of its ways, and how their sizes were chosen."""
    asks = study["asks"][0].upper() + study["asks"][1:]
    lines = [
        f"## {name}",
        "",
        f"{asks}{'' if asks.endswith('?') else '.'} {origin(study)}",
        "",
        "| | chosen | passes | seeds | test | minus plain (over seeds; over images) | above plain"
        " | p | p (Holm) | test, statistics anew | training part |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(table_row(row) for row in study["methods"]),
        "",
        *(f"* {label(way)}: {sizes(tried)}" for way, tried in distinct(study["tuning"]).items()),
    ]
    return "\n".join(lines).rstrip()


def origin(study: Row) -> str:
    """How many runs there are of how many, on what, and when."""
    finished = f"{study['finished_runs']} of {study['planned_runs']} runs"
    if not study["methods"]:
        return f"{finished}."
    days = sorted(time[:10] for row in study["methods"] for time in row["time"])
    when = days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
    machines = [
        f"{made['device']}, threads: {made['threads']}, Python {made['versions']['python']}, torch"
        f" {made['versions']['torch']}, torch_awp {made['versions']['torch_awp']}"
        for made in study["made_on"]
    ]
    return f"{finished}; {'; '.join(machines)}; {when}."


def table_row(row: Row) -> str:
    """A way: its size, cost and scores, and its gain where plain training has the same seeds."""
    means = [
        f"{statistics.mean(row[part]):.3f}"
        for part in ("test_srcc", "test_srcc_clean_statistics", "train_srcc")
    ]
    test = ["", "", "", ""]
    if "p_value" in row:
        test = [
            gain(row),
            f"{row['wins']} of {row['n']}",
            f"{row['p_value']:.2g}",
            f"{row['p_holm']:.2g}",
        ]
    name, chosen = label(row["method"]), size(row["values"])
    cost, seeds = f"{row['passes']:.2f}", str(len(row["seeds"]))
    return f"| {' | '.join([name, chosen, cost, seeds, means[0], *test, *means[1:]])} |"


def gain(row: Row) -> str:
    """Difference to plain, its interval over seeds and over images."""
    over_seeds, over_images = (
        f"{low:+.3f} to {high:+.3f}"
        for low, high in ((row["low"], row["high"]), row["over_images"])
    )
    told = f"{row['difference']:+.3f} ({over_seeds}; {over_images})"
    return f"**{told}**" if row["p_holm"] < 0.05 else told


def size(values: Row) -> str:
    """What a way was given, as it is written in a table."""
    given = {name: values.get(name) for name in SIZES}
    return ", ".join(f"{name.replace('_', ' ')} {own:g}" for name, own in given.items() if own)


def sizes(tried: Sequence[Row]) -> str:
    """The candidates and their validation scores, the best in bold."""
    scored = [(size(own), own["validation_srcc"]) for own in tried]
    best = max(score for _, score in scored)
    return ", ".join(f"{own} **{s:.3f}**" if s == best else f"{own} {s:.3f}" for own, s in scored)


def distinct(tuning: Mapping[str, Sequence[Row]]) -> dict[str, Sequence[Row]]:
    """The choices that were tried; where several ways share one, under the name of the first."""
    told: dict[str, Sequence[Row]] = {}
    for way, tried in tuning.items():
        if tried and tried not in told.values():
            told[way] = tried
    return told


def drawn(studies: Mapping[str, Row]) -> list[Row]:
    """The rows of the figure, each method once, from the study that has most seeds of it."""
    rows: dict[str, Row] = {}
    for name in STUDIES:
        for row in studies[name]["methods"]:
            enough = row.get("n", 0) >= FEWEST_SEEDS and row["method"] not in LEFT_OUT
            if enough and row["n"] > rows.get(row["method"], {"n": 0})["n"]:
                rows[row["method"]] = row
    return list(rows.values())


def figure(rows: Sequence[Row]) -> Figure:
    """A line for each method: cheap ones below, of equal cost the better one above."""
    rows = sorted(rows, key=lambda row: (row["passes"], row["difference"]))
    picture = Figure(figsize=(8, 0.8 + 0.28 * len(rows)), layout="constrained")
    axes = picture.subplots()
    axes.axvline(0, color="0.7", linewidth=1)
    for place, row in enumerate(rows):
        mean = row["difference"]
        spread = [[mean - row["low"]], [row["high"] - mean]]
        color = "tab:red" if row["method"].startswith("awp") else "0.35"
        axes.errorbar(mean, place, xerr=spread, fmt="o", color=color, linewidth=1.5, markersize=6)
    axes.set_yticks(range(len(rows)), [f"{label(r['method'])}   {r['passes']:.3g}" for r in rows])
    gained = (
        "gain in test SRCC over plain training, backbone's learning rate 2e-4 (95 % over seeds)"
    )
    picture.supxlabel(gained, size=9)
    picture.suptitle("method, and its passes through the network for plain training's one", size=9)
    return picture


def label(method: str) -> str:
    """A way's name as it is read."""
    first, comma, rest = method.partition(",")
    return NAMES.get(first, first.replace("-", " ")) + comma + rest


def main() -> None:
    studies = json.loads((RESULTS / "pretrained.json").read_text("utf-8"))
    (RESULTS / "pretrained.md").write_text(report(studies), "utf-8")
    figure(drawn(studies)).savefig(RESULTS / "pretrained.png", dpi=130)


if __name__ == "__main__":
    main()
