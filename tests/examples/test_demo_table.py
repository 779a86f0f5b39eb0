"""The demo's table in examples/README.md has the numbers of the results file beside its figure."""

import json
import re
from statistics import mean, stdev

import pytest
from command_line import REPOSITORY
from scipy import stats

from vqa.training.settings import METHOD_NAMES

RESULTS = json.loads((REPOSITORY / "examples" / "demo.json").read_text(encoding="utf-8"))
QUANTITIES = {
    "gap SRCC (train - test)": "gap SRCC",
    "train SRCC": "train SRCC",
    "test SRCC": "test SRCC",
    "out-of-domain SRCC": "ood SRCC",
    "sharpness": "sharpness",
}


def rows() -> dict[str, dict[str, str]]:
    """Cells of the table by row and method; a row of differences is named after the one above."""
    text = (REPOSITORY / "examples" / "README.md").read_text(encoding="utf-8")
    demo = text.partition("<!-- demo -->")[2].partition("<!-- /demo -->")[0]
    lines = [line.strip("|").split("|") for line in demo.splitlines() if line.startswith("|")]
    (_, *heads), _, *body = [[cell.strip(" *") for cell in line] for line in lines]
    methods = {name: own for own, name in METHOD_NAMES.items()}
    columns = [methods[head.replace("`", "")] for head in heads]
    found, above = {}, ""
    for name, *cells in body:
        above = name if "difference" not in name else f"{above}, difference"
        found[above] = dict(zip(columns, cells, strict=True))
    return found


def values(method: str, quantity: str) -> list[float]:
    """Of every seed, in their order."""
    own = [run for run in RESULTS["runs"] if run["method"] == method]
    return [run[quantity] for run in sorted(own, key=lambda run: run["seed"])]


def numbers(cell: str) -> list[str]:
    return re.findall(r"[-+]?[0-9.]+", cell)


def test_every_method_has_every_seed():
    assert list(rows()["train SRCC"]) == list(METHOD_NAMES)
    for method in METHOD_NAMES:
        assert len(values(method, "test SRCC")) == len(RESULTS["seeds"]) == 6


@pytest.mark.parametrize("name", QUANTITIES)
def test_means_and_deviations_are_those_of_the_runs(name):
    for method, cell in rows()[name].items():
        own = values(method, QUANTITIES[name])
        assert numbers(cell) == [f"{mean(own):.3f}", f"{stdev(own):.3f}"]


@pytest.mark.parametrize("name", ["gap SRCC (train - test)", "test SRCC"])
def test_differences_to_plain_are_those_of_the_runs(name):
    plain = values("plain", QUANTITIES[name])
    better = 1 if name == "test SRCC" else -1
    for method, cell in rows()[f"{name}, difference"].items():
        if method == "plain":
            assert cell == ""
            continue
        own = values(method, QUANTITIES[name])
        differences = [a - b for a, b in zip(own, plain, strict=True)]
        p = stats.ttest_1samp(differences, 0.0).pvalue
        good = sum(better * difference > 0 for difference in differences)
        assert numbers(cell) == [f"{mean(differences):+.3f}", f"{p:.1g}", str(good), "6"]


def test_times_of_a_step_are_relative_to_plain():
    base = mean(values("plain", "ms / step"))
    for method, cell in rows()["time of a step"].items():
        expected = "1" if method == "plain" else f"{mean(values(method, 'ms / step')) / base:.2f}"
        assert cell == expected


def test_the_gap_is_train_minus_test():
    for run in RESULTS["runs"]:
        assert run["gap SRCC"] == pytest.approx(run["train SRCC"] - run["test SRCC"])
