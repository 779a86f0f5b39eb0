"""The report says what the runs show and nothing else."""

import csv
import json
from pathlib import Path

import pytest

from vqa.demo import by_method, conclusions, table, write_results
from vqa.store import Results


def run_with(method, seed: int, train: float, test: float) -> Results:
    def scores(value: float) -> dict[str, float]:
        return {"srcc": value, "plcc": value}

    split = {
        "train": scores(train),
        "test": scores(test),
        "gap": scores(train - test),
        "also": {"mini-ugc-ood": scores(test - 0.1)},
        "median_step_seconds": 0.01 if method == "plain" else 0.02,
        "landscape": {
            "positions": [-1.0, 0.0, 1.0],
            "losses": [0.3, 0.1, 0.3],
            "sharpness": 0.2 if method == "plain" else 0.05,
        },
    }
    perturb = "none" if method == "plain" else method
    settings = {"perturb": perturb, "gamma": 0.01, "seed": seed}
    return Results(Path("results.json"), {"settings": settings, "splits": [split]})


def runs_with_gaps(plain: list[float], awp: list[float]) -> dict:
    runs = [run_with("plain", seed, 0.9, 0.9 - gap) for seed, gap in enumerate(plain)]
    return by_method([*runs, *(run_with("awp", s, 0.85, 0.85 - g) for s, g in enumerate(awp))])


CLEAR = runs_with_gaps([0.30, 0.31, 0.29, 0.32], [0.20, 0.22, 0.19, 0.21])
REVERSED = runs_with_gaps([0.20, 0.22, 0.19, 0.21], [0.30, 0.31, 0.29, 0.32])
UNCLEAR = runs_with_gaps([0.30, 0.20, 0.25, 0.28], [0.24, 0.27, 0.21, 0.29])


def test_runs_are_ordered_by_seed_so_that_they_pair_up():
    runs = by_method([run_with("plain", seed, 0.9, 0.6) for seed in (2, 0, 1)])

    assert [run.document["settings"]["seed"] for run in runs["plain"]] == [0, 1, 2]


def test_the_table_has_mean_spread_and_paired_difference():
    row, difference = (lines[i] for lines in [table(CLEAR).splitlines()] for i in (5, 6))

    assert row.split() == ["gap", "SRCC", "0.305", "±", "0.013", "0.205", "±", "0.013"]
    assert difference.split()[:3] == ["-", "plain", "-0.100"]
    assert difference.split()[3].startswith("p=")


@pytest.mark.parametrize(
    ("runs", "verdict"),
    [
        (CLEAR, "gap in SRCC is smaller (-0.100, smaller on 4 of 4 seeds, p ="),
        (REVERSED, "gap in SRCC is larger (+0.100, larger on 4 of 4 seeds, p ="),
        (UNCLEAR, "gap in SRCC is not clearly different (-0.005, smaller on 2 of 4 seeds, p ="),
    ],
    ids=["smaller", "larger", "unclear"],
)
def test_conclusions_follow_the_numbers(runs, verdict):
    (sentence,) = conclusions(runs)

    assert verdict in sentence


def test_conclusions_put_sharpness_and_cost_in_proportion():
    (sentence,) = conclusions(CLEAR)

    assert "sharpness is 0.25 times that of plain, a step takes 2.00 times as long" in sentence


def test_without_plain_nothing_is_concluded():
    assert conclusions({"awp": CLEAR["awp"]}) == []


def test_results_hold_every_run_with_all_parts(tmp_path):
    write_results(tmp_path, CLEAR, {"seeds": [0, 1, 2, 3]})

    document = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert len(document["runs"]) == 8
    for run in document["runs"]:
        for part in ("train", "test", "ood", "gap"):
            assert {f"{part} SRCC", f"{part} PLCC"} <= set(run)
        assert run["landscape"]["positions"] == [-1.0, 0.0, 1.0]
    assert document["seeds"] == [0, 1, 2, 3]
    assert document["summary"]["awp"]["gap SRCC"]["minus_plain"]["n"] == 4


def test_the_csv_has_one_row_per_run(tmp_path):
    write_results(tmp_path, CLEAR, {})

    with (tmp_path / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["seed"]) for row in rows[:2]] == [("plain", "0"), ("plain", "1")]
    assert float(rows[0]["gap SRCC"]) == pytest.approx(0.30)


def test_results_of_a_single_seed_are_valid_json(tmp_path):
    runs = by_method([run_with("plain", 0, 0.9, 0.6), run_with("awp", 0, 0.9, 0.7)])

    write_results(tmp_path, runs, {})

    text = (tmp_path / "results.json").read_text(encoding="utf-8")
    assert json.loads(text)["summary"]["awp"]["gap SRCC"]["minus_plain"]["p_value"] is None
    assert "NaN" not in text


def test_the_figure_is_a_picture(tmp_path):
    write_results(tmp_path, CLEAR, {})

    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
