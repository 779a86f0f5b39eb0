"""Draw what each method gained on the pretrained network, beside its passes, for README.md.

`python benchmarks/pretrained_figure.py` reads `results/pretrained.json` and writes
`results/pretrained.png`: test SRCC minus that of plain training on the same seeds, with the 95 %
interval over seeds, of the methods that have at least three.
"""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
STUDIES = ("methods", "end")
FEWEST_SEEDS = 3
NAMES = {"awp": "AWP", "rwp": "RWP", "awp-update": 'ascent="update"'}
LEFT_OUT = ("awp-previous", "plain, epoch chosen")


def drawn(studies: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the figure, each method once, from the study that has most seeds of it."""
    rows: dict[str, dict[str, Any]] = {}
    for name in STUDIES:
        for row in studies[name]["methods"]:
            enough = row.get("n", 0) >= FEWEST_SEEDS and row["method"] not in LEFT_OUT
            if enough and row["n"] > rows.get(row["method"], {"n": 0})["n"]:
                rows[row["method"]] = row
    return list(rows.values())


def figure(rows: list[dict[str, Any]]) -> Figure:
    """A line for each method: cheap ones below, of equal cost the better one above."""
    rows = sorted(rows, key=lambda row: (row["passes"], row["difference"]))
    picture = Figure(figsize=(7, 0.8 + 0.28 * len(rows)), layout="constrained")
    axes = picture.subplots()
    axes.axvline(0, color="0.7", linewidth=1)
    for place, row in enumerate(rows):
        gain = row["difference"]
        spread = [[gain - row["low"]], [row["high"] - gain]]
        color = "tab:red" if row["method"].startswith("awp") else "0.35"
        axes.errorbar(gain, place, xerr=spread, fmt="o", color=color, linewidth=1.5, markersize=6)
    axes.set_yticks(range(len(rows)), [f"{label(r['method'])}   {r['passes']:.3g}" for r in rows])
    axes.set_xlabel("gain in test SRCC over plain training (95 % over seeds)")
    axes.set_title("method, and its passes through the network for plain training's one", size=9)
    return picture


def label(method: str) -> str:
    first, comma, rest = method.partition(",")
    return NAMES.get(first, first.replace("-", " ")) + comma + rest


def main() -> None:
    studies = json.loads((RESULTS / "pretrained.json").read_text("utf-8"))
    figure(drawn(studies)).savefig(RESULTS / "pretrained.png", dpi=130)


if __name__ == "__main__":
    main()
