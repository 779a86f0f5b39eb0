"""The benchmark of pretrained networks: fair parts, choices by validation, runs that are kept."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import REPOSITORY
from scipy import stats

from benchmarks import pretrained
from benchmarks.generalization_grounds.items import interval, resampled_srcc
from benchmarks.pretrained import (
    PLAIN,
    Pretrained,
    Run,
    chosen_ways,
    load_run,
    main,
    methods,
    parts_for,
    save_run,
    trainings,
    tuning_settings,
    write_result,
)
from finetune_image_quality import Images

GRIDS = {
    "awp": ({"perturb": "awp"}, [{"gamma": 0.01}, {"gamma": 0.1}]),
    "awp-update": ({"perturb": "awp-update"}, [{"gamma": 0.01}, {"gamma": 0.1}]),
    "dropout": (PLAIN, [{"dropout": 0.5}]),
}


ALL_GRIDS = pretrained.GRIDS
RESULTS = REPOSITORY / "benchmarks" / "results"


@pytest.fixture(autouse=True)
def _few_candidates(monkeypatch):
    monkeypatch.setattr(pretrained, "GRIDS", GRIDS)


@pytest.fixture
def benchmark(few_images, tmp_path) -> Pretrained:
    return Pretrained(
        data_root=few_images["data_root"],
        weights="none",
        backbone="test_efficientnet",
        seeds=2,
        tuning_seeds=2,
        epochs=1,
        tuning_epochs=1,
        size=48,
        crop=32,
        tuning_crop=32,
        batch=6,
        compile=False,
        output=tmp_path,
    )


def numbered(count: int, first: int) -> Images:
    """Images whose scores say which they are."""
    pixels = torch.zeros(3, 8, 8, dtype=torch.uint8)
    return [(pixels, float(number)) for number in range(first, first + count)]


def invented(predicted: Sequence[float], seed: int = 0) -> Run:
    opinion = tuple(float(n) for n in range(len(predicted)))
    return Run(
        settings={}, held="test", predicted=tuple(predicted), predicted_clean=tuple(predicted),
        opinion=opinion, train_srcc=1.0, epoch=1, history=[], cpu_seconds=1.0,
        provenance={"time": f"2026-01-0{seed + 1}"},
    )  # fmt: skip


@pytest.mark.parametrize("held", ["validation", "test"])
@pytest.mark.parametrize("share", [0.0, 0.2])
def test_no_image_is_in_two_parts_and_tuning_never_sees_the_test_part(benchmark, held, share):
    given = {"train": numbered(90, 0), "validation": numbered(0, 0), "test": numbered(30, 1000)}

    parts = parts_for(replace(benchmark.plain, seed=3, validation_share=share), held, given)

    numbers = {part: {score for _, score in own} for part, own in parts.items()}
    assert sum(map(len, numbers.values())) == len(set().union(*numbers.values()))
    assert len(numbers["test"]) == (20 if held == "validation" else 30)
    assert (min(numbers["test"]) >= 1000) == (held == "test")
    assert max(numbers["train"] | numbers["validation"]) < 1000
    assert len(numbers["validation"]) == round(share * (70 if held == "validation" else 90))


def test_the_seed_decides_what_is_left_out(benchmark):
    given = {"train": numbered(90, 0), "validation": numbered(0, 0), "test": numbered(30, 1000)}

    first, again, other = (
        [
            score
            for _, score in parts_for(replace(benchmark.plain, seed=seed), "validation", given)[
                "test"
            ]
        ]
        for seed in (0, 0, 1)
    )

    assert first == again
    assert first != other


def test_everything_runs_once_and_every_method_has_a_row(benchmark, capsys):
    benchmark = replace(benchmark, tuning_seeds=1)
    main(benchmark)
    first = capsys.readouterr().out

    main(benchmark)

    assert first.count(" on validation") == 5
    assert capsys.readouterr().out == ""
    document = json.loads((benchmark.output / "pretrained.json").read_text("utf-8"))
    ways = chosen_ways(benchmark, benchmark.output / "pretrained-runs")
    assert [row["method"] for row in document["methods"]] == list(ways)
    for row in document["methods"]:
        assert row["seeds"] == [2, 3]
        assert all(seconds > 0 for seconds in row["cpu_seconds"])
    assert {"difference", "p_holm", "over_images"} <= document["methods"][-1].keys()
    kept = next((benchmark.output / "pretrained-runs").glob("*.json")).read_text("utf-8")
    assert {"versions", "device", "time"} <= json.loads(kept)["provenance"].keys()


def test_the_best_value_by_validation_is_chosen(benchmark, tmp_path):
    good, bad = [0.0, 1.0, 2.0, 3.0], [1.0, 0.0, 2.0, 3.0]
    for settings in tuning_settings(benchmark):
        run = replace(invented(good if settings.gamma == 0.1 else bad), held="validation")
        save_run(tmp_path, settings, run)

    ways = chosen_ways(benchmark, tmp_path)

    assert ways["awp"] == {"perturb": "awp", "gamma": 0.1}
    assert ways["awp-update"]["gamma"] == 0.1
    assert ways["awp-update, twice the epochs"] == {**ways["awp-update"], "epochs": 2}
    assert ways["dropout"] == {**PLAIN, "dropout": 0.5}


def test_a_value_at_which_training_diverged_is_not_chosen(benchmark, tmp_path):
    for settings in tuning_settings(benchmark):
        predicted = [math.nan] * 4 if settings.gamma == 0.01 else [1.0, 0.0, 2.0, 3.0]
        save_run(tmp_path, settings, replace(invented(predicted), held="validation"))

    assert chosen_ways(benchmark, tmp_path)["awp"]["gamma"] == 0.1


def test_nothing_is_chosen_before_all_candidates_are_there(benchmark, tmp_path):
    first, *_ = tuning_settings(benchmark)
    save_run(tmp_path, first, replace(invented([0.0, 1.0]), held="validation"))

    assert "awp" not in chosen_ways(benchmark, tmp_path)


def test_a_run_is_kept_as_it_was_and_told_from_others(benchmark, tmp_path):
    settings = benchmark.plain
    run = invented([0.25, 0.5, 0.125])

    save_run(tmp_path, settings, run)

    kept = load_run(tmp_path, replace(settings, data_root=Path("elsewhere")), "test")
    assert kept is not None
    assert kept.agreement == run.agreement
    for other in (replace(settings, gamma=0.1), replace(settings, seed=9)):
        assert load_run(tmp_path, other, "test") is None
    assert load_run(tmp_path, settings, "validation") is None


def test_the_share_that_moves_tells_runs_apart_and_stays_out_of_those_that_move_all(
    benchmark, tmp_path
):
    end = replace(benchmark.plain, perturb="awp", gamma=0.1, perturb_last=0.5)
    save_run(tmp_path, end, invented([0.25, 0.5, 0.125]))

    assert load_run(tmp_path, end, "test") is not None
    for share in (0.25, 1.0):
        assert load_run(tmp_path, replace(end, perturb_last=share), "test") is None


def test_every_run_that_is_kept_is_found_and_says_what_it_said(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "GRIDS", ALL_GRIDS)
    kept = RESULTS / "pretrained-runs"
    benchmark = Pretrained(data_root=Path("elsewhere"), seeds=5, output=tmp_path)

    asked = list(trainings(benchmark, kept))
    found = [run for settings, held in asked if (run := load_run(kept, settings, held))]

    assert len(found) == len(list(kept.glob("*.json")))
    write_result(benchmark, kept)
    told = json.loads((tmp_path / "pretrained.json").read_text("utf-8"))
    wanted = json.loads((RESULTS / "pretrained.json").read_text("utf-8"))
    for own, before in zip(told["methods"], wanted["methods"], strict=True):
        assert own["method"] == before["method"]
        assert own["test_srcc"] == pytest.approx(before["test_srcc"])
    assert told["settings"] == wanted["settings"]


def test_methods_are_compared_on_the_seeds_that_both_have(benchmark, tmp_path, monkeypatch):
    way = {"perturb": "awp", "gamma": 0.1}
    monkeypatch.setattr(pretrained, "GRIDS", {"awp": (way, [{}])})
    benchmark = replace(benchmark, seeds=3)
    for settings in tuning_settings(benchmark):
        save_run(tmp_path, settings, replace(invented([0.0, 1.0]), held="validation"))
    orders = {2: [0, 1, 2, 3], 3: [1, 0, 2, 3], 4: [3, 2, 1, 0]}
    for seed, order in orders.items():
        plain = replace(benchmark.plain, seed=seed)
        save_run(tmp_path, plain, invented([1.0, 0.0, 3.0, 2.0], seed))
        if seed < 4:
            save_run(tmp_path, replace(plain, **way), invented(order, seed))

    plain, awp = methods(benchmark, tmp_path)

    assert (plain["seeds"], awp["seeds"]) == ([2, 3, 4], [2, 3])
    wanted = [stats.spearmanr(orders[s], range(4)).statistic for s in (2, 3)]
    assert awp["test_srcc"] == pytest.approx(wanted)
    base = stats.spearmanr([1, 0, 3, 2], range(4)).statistic
    assert awp["difference"] == pytest.approx(np.mean(wanted) - base)


def test_the_interval_over_items_is_that_of_the_bootstrap():
    generator = np.random.default_rng(1)
    scores = generator.normal(size=40)
    better = scores + generator.normal(size=(3, 40))
    worse = scores + 3 * generator.normal(size=(3, 40))

    low, high = interval(
        resampled_srcc(better, scores, seed=5) - resampled_srcc(worse, scores, seed=5)
    )

    # Written out: whole samples of items, scipy's correlation, the mean over runs.
    draws = np.random.default_rng(6).integers(40, size=(400, 40))
    differences = [
        np.mean(
            [
                stats.spearmanr(a[d], scores[d]).statistic
                - stats.spearmanr(b[d], scores[d]).statistic
                for a, b in zip(better, worse, strict=True)
            ]
        )
        for d in draws
    ]
    assert (low, high) == pytest.approx(np.percentile(differences, [2.5, 97.5]), abs=0.06)


def test_an_interval_of_nothing_is_not_a_number():
    assert all(map(math.isnan, interval(resampled_srcc([[1.0, 1.0, 1.0]], [1.0, 2.0, 3.0]))))
