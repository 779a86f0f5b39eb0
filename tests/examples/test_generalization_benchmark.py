"""The generalisation benchmark: fair pairs, choices without test data, corrected statistics."""

import csv
import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.nn.modules.module import register_module_forward_hook

from benchmarks.biq2021_features import image_features
from benchmarks.generalization import Generalization, main, read_choices
from benchmarks.generalization_grounds.biq2021 import SGD, TABLE, Biq2021, LabelledTable, load_table
from benchmarks.generalization_grounds.comparison import compare, holm
from benchmarks.generalization_grounds.digits import Digits, with_wrong_labels
from benchmarks.generalization_grounds.fitting import PlainTraining
from benchmarks.generalization_grounds.ground import Ground, Outcome
from benchmarks.generalization_grounds.methods import INDEPENDENT, Recipe, dependent
from benchmarks.generalization_grounds.mini_ugc import MiniUgc, TrainingSettings, add_dropout
from benchmarks.generalization_grounds.runs import Job, Runner
from benchmarks.generalization_grounds.selection import best_ordinary, choose_all
from vqa.models import build_model
from vqa.synthetic.mini_ugc import MiniUgcSettings

COMMITTED = Path(__file__).parents[2] / "benchmarks" / "results" / "generalization.json"
PERTURBED = [
    Recipe("rwp", 0.1),
    Recipe("sam", 0.1),
    Recipe("awp", 0.3),
    Recipe("awp", 0.3, steps=3),
    Recipe("awp", 0.3, interval=2),
    Recipe("awp", 0.3, ascent="update"),
    Recipe("awp", 0.3, start=0.5),
    Recipe("awp", 0.3, climb_share=0.5),
    Recipe("awp", 0.3, constraint="element"),
    Recipe("awp", 0.3, last=1),
]
RECIPES = [
    *PERTURBED,
    Recipe(length=2.0),
    Recipe(dropout=0.5),
    Recipe(weight_decay=10.0),
]


def synthetic_table() -> LabelledTable:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 6, generator=generator)
    scores = features[:, 0] + torch.randn(60, generator=generator)
    return LabelledTable(features, scores, torch.arange(60) % 3 == 0)


@cache
def small(
    name: str = "biq2021", mini_ugc: Path | None = None, videval: Path | None = None
) -> Biq2021:
    return Biq2021(synthetic_table(), PlainTraining(epochs=2, batch=8), fitted=32, width=8)


def without_time(outcome: Outcome) -> Outcome:
    return replace(outcome, cpu_seconds=0.0)


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_training_takes_the_passes_that_a_recipe_says(recipe):
    plain = small().run(Recipe(), 0, "test").passes

    assert small().run(recipe, 0, "test").passes == plain * recipe.passes


def trained_weights(ground: Ground, recipe: Recipe, seed: int) -> torch.Tensor:
    """What a run leaves in the model that it trains; other weights may well have equal scores."""
    trained = []
    with register_module_forward_hook(lambda module, *_: trained.append(module)):
        ground.run(recipe, seed, "test")
    return torch.cat([p.detach().flatten() for p in trained[-1].parameters()])


@pytest.mark.parametrize("recipe", [Recipe(), *PERTURBED], ids=str)
def test_every_method_trains_with_sgd_too(recipe):
    plain = replace(SGD, epochs=2, batch=8)
    ground = Biq2021(synthetic_table(), plain, fitted=32, width=8)

    assert not trained_weights(ground, recipe, 0).equal(trained_weights(small(), recipe, 0))


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_every_recipe_changes_the_training(recipe):
    plain = trained_weights(small(), Recipe(), 0)

    assert not trained_weights(small(), recipe, 0).equal(plain)


def test_of_three_layers_the_last_three_are_all():
    every, three, one = (
        trained_weights(small(), Recipe("awp", 0.3, last=count), 0) for count in (None, 3, 1)
    )

    assert three.equal(every)
    assert not one.equal(every)


@pytest.mark.parametrize("recipe", PERTURBED, ids=str)
def test_methods_are_paired_so_that_without_perturbation_they_agree(recipe):
    plain = small().run(Recipe(), 3, "test")

    still = small().run(replace(recipe, magnitude=0.0), 3, "test")

    assert still.score == plain.score
    assert still.train_score == plain.train_score


def test_a_run_is_reproducible_and_depends_on_the_seed():
    recipe = Recipe("rwp", 0.3)

    first, again = (small().run(recipe, 1, "test") for _ in range(2))

    assert without_time(first) == without_time(again)
    weights = [trained_weights(small(), recipe, seed) for seed in (1, 2)]
    assert not weights[0].equal(weights[1])


def test_validation_never_looks_at_test_data():
    table = synthetic_table()
    blind = replace(table, scores=table.scores.masked_fill(table.is_test, math.nan))
    seeing, blinded = (Biq2021(t, PlainTraining(epochs=1, batch=8), 32, 8) for t in (table, blind))

    first, second = (g.run(Recipe(), 0, "validation") for g in (seeing, blinded))

    assert without_time(first) == without_time(second)


def test_the_carried_table_is_that_of_the_feature_program():
    with np.load(TABLE) as table:
        names = table["feature_names"].tolist()

    assert names == list(image_features(torch.zeros(3, 128, 128)))
    assert TABLE.stat().st_size < 2_000_000


def test_the_carried_table_has_its_photographs_and_their_split():
    table = load_table()

    assert (len(table.scores), int(table.is_test.sum())) == (1349, 449)
    assert bool(((table.scores >= 0) & (table.scores <= 1)).all())
    assert bool(table.features.isfinite().all())


def test_gaussian_noise_has_the_moments_of_a_gaussian():
    generator = torch.Generator().manual_seed(0)
    grey = 128 + 20 * torch.randn(1, 256, 256, generator=generator)

    features = image_features(grey.expand(3, -1, -1))

    assert features["luma shape/1/mean"] == pytest.approx(math.sqrt(2 / math.pi), abs=0.04)
    assert features["luma skewness/1/mean"] == pytest.approx(0, abs=0.02)
    assert features["brightness/1/mean"] == pytest.approx(128 / 255, abs=1e-3)
    assert features["red-green mean/1/mean"] == pytest.approx(0, abs=1e-6)


def test_a_flat_image_has_finite_features():
    assert all(math.isfinite(v) for v in image_features(torch.full((3, 128, 160), 7.0)).values())


@pytest.mark.parametrize("shape", [(1, 256, 256), (3, 127, 256), (256, 256)])
def test_images_that_have_no_grid_of_cells_are_an_error(shape):
    with pytest.raises(ValueError, match=r"rgb: expected \[3, H, W\], H and W at least 128"):
        image_features(torch.zeros(shape))


def test_exactly_a_part_of_the_labels_becomes_wrong():
    labels = torch.arange(1000) % 10

    noisy = with_wrong_labels(labels, 0.2, torch.Generator().manual_seed(0))

    assert int((noisy != labels).sum()) == 200
    assert set(noisy.tolist()) == set(range(10))


def test_digits_are_scored_by_accuracy():
    ground = Digits(PlainTraining(epochs=10), width=32)

    outcome = ground.run(Recipe(), 0, "test")

    assert 0.2 < outcome.score < 1
    assert outcome.score * 797 == pytest.approx(round(outcome.score * 797), abs=1e-3)


def test_mini_ugc_leaves_whole_photographs_out(tmp_path):
    data = MiniUgcSettings(photographs=4, train_clips=2, test_clips=2)
    training = TrainingSettings(steps=2, batch=2)
    ground = MiniUgc(tmp_path / "clips", data, training, left_out=2, width=4)

    plain = ground.run(Recipe(), 0, "test")
    awp = ground.run(Recipe("awp", 0.05, length=2.0), 0, "validation")

    assert (plain.passes, awp.passes) == (2, 8)
    weights = [trained_weights(ground, Recipe(dropout=share), 0) for share in (0.0, 0.5)]
    assert not weights[0].equal(weights[1])


def test_dropout_in_the_head_of_tiny_fast_vqa_acts_in_training_only():
    model = build_model("tiny_fast_vqa", width=4)
    clip = torch.randn(2, 3, 2, 16, 16)
    whole = model(clip)

    add_dropout(model, 0.5)

    assert not torch.equal(model(clip), whole)
    torch.testing.assert_close(model.eval()(clip), whole)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_corrects_like_the_definition(p_values):
    ordered = sorted(p_values)
    m = len(ordered)
    adjusted = [max(min(1.0, (m - j) * ordered[j]) for j in range(i + 1)) for i in range(m)]

    assert sorted(holm(p_values)) == pytest.approx(adjusted)
    assert all(new >= old for new, old in zip(holm(p_values), p_values, strict=True))


def test_intervals_and_p_values_are_those_of_the_paired_t_test():
    scores = {"a": [0.5, 0.7, 0.4, 0.9], "b": [0.4, 0.4, 0.5, 0.6], "c": [0.1, 0.2, 0.2, 0.1]}

    first, second = compare(scores, [("a", "b"), ("a", "c")])

    reference = stats.ttest_rel(scores["a"], scores["b"])
    interval = reference.confidence_interval(0.95)
    assert (first.low, first.high) == pytest.approx((interval.low, interval.high))
    assert first.p_value == pytest.approx(reference.pvalue)
    assert [first.p_holm, second.p_holm] == pytest.approx(holm([first.p_value, second.p_value]))
    assert (first.wins, first.n) == (3, 4)


def test_one_seed_is_not_compared():
    with pytest.raises(ValueError, match="at least two seeds"):
        compare({"a": [1.0], "b": [2.0]}, [("a", "b")])


class Formula:
    """A ground whose validation score is highest at known values; it has no test data."""

    metric, seeds, tuning_seeds, opinion = "score", 2, 1, {}

    def __init__(self) -> None:
        self.runs = 0
        self.grids = {
            "gamma": (0.01, 0.02, 0.04),
            "update": (0.01, 0.02),
            "element": (0.02, 0.04),
            "rwp": (0.1, 0.3),
            "rho": (0.1, 0.2),
            "dropout": (0.2, 0.5),
            "weight_decay": (1.0, 3.0),
            "length": (0.3, 0.5),
        }

    def describe(self):
        return {"formula": 1}

    def run(self, recipe, seed, part):
        assert part == "validation"
        self.runs += 1
        miss = (
            abs(recipe.magnitude - 0.02) + abs(recipe.dropout - 0.5) + abs(recipe.length - 0.5) / 2
        )
        return Outcome(1 - miss + seed, 1.0, 1, 1.0)


def test_what_is_open_is_decided_by_the_validation_score(tmp_path):
    choices = choose_all(Runner("formula", cache(Formula), tmp_path), [7, 8])

    assert choices["awp"].recipe == Recipe("awp", 0.02)
    assert choices["rwp"].recipe == Recipe("rwp", 0.1)
    assert choices["fewer-steps"].recipe == Recipe(length=0.5)
    assert choices["dropout"].validation == pytest.approx({0.2: 7.93, 0.5: 8.23})
    assert best_ordinary(choices) == "dropout"
    assert choices["ordinary+update"].recipe == Recipe("awp", 0.02, ascent="update", dropout=0.5)
    assert choices["rwp-awp-gamma"].recipe == Recipe("rwp", 0.02)


def test_finished_runs_are_not_run_again(tmp_path):
    ground = Formula()
    jobs = [Job(Recipe("awp", gamma), 0, "validation") for gamma in (0.01, 0.02, 0.04)]
    runner = Runner("formula", lambda: ground, tmp_path)
    first = runner.outcomes(jobs[:2], "some")

    every = runner.outcomes(jobs, "all")

    assert ground.runs == 3
    assert {job: every[job] for job in jobs[:2]} == first


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory) -> Generalization:
    folder = tmp_path_factory.mktemp("generalization")
    settings = Generalization(
        grounds=("biq2021",), seeds=2, tuning_seeds=1, output=folder / "out", runs=folder / "runs"
    )
    main(settings, small)
    return settings


def test_every_method_is_in_table_and_document(benchmark, capsys):
    main(benchmark, small)

    document = json.loads((benchmark.output / "generalization.json").read_text("utf-8"))["biq2021"]
    with (benchmark.output / "generalization.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    methods = {*INDEPENDENT, *dependent({m: Recipe() for m in INDEPENDENT}, "dropout")}
    methods -= {"ridge", "svr"}  # the ground has no grid for them
    assert {line["method"] for line in lines} == set(document["runs"]) == methods
    assert all(len(runs) == 2 for runs in document["runs"].values())
    assert {"versions", "device", "time"} <= set(document["environment"])
    printed = capsys.readouterr().out
    assert all(row["title"] in printed for row in document["rows"])
    assert (benchmark.output / "generalization.png").stat().st_size > 10_000


def test_a_second_time_costs_no_training(benchmark):
    kept = sorted(benchmark.runs.rglob("*.json"))
    times = [path.stat().st_mtime_ns for path in kept]

    main(benchmark, small)

    assert sorted(benchmark.runs.rglob("*.json")) == kept
    assert [path.stat().st_mtime_ns for path in kept] == times


def test_choices_of_an_earlier_result_are_taken_without_tuning(benchmark, tmp_path):
    earlier = benchmark.output / "generalization.json"
    reused = replace(benchmark, chosen=earlier, seeds=2, output=tmp_path, runs=tmp_path / "runs")

    main(reused, small)

    kept = [json.loads(path.read_text("utf-8")) for path in reused.runs.rglob("*.json")]
    assert {own["job"]["part"] for own in kept} == {"test"}
    again = read_choices(tmp_path / "generalization.json", "biq2021")
    assert again["awp"].recipe == read_choices(earlier, "biq2021")["awp"].recipe


def test_other_grounds_keep_their_results(benchmark, tmp_path):
    document = json.loads((benchmark.output / "generalization.json").read_text("utf-8"))
    (tmp_path / "generalization.json").write_text(json.dumps({"digits": document["biq2021"]}))

    main(replace(benchmark, output=tmp_path), small)

    merged = json.loads((tmp_path / "generalization.json").read_text("utf-8"))
    assert merged["digits"] == document["biq2021"]
    assert set(merged) == {"digits", "biq2021"}


GONE = {"awp-previous", "ordinary+previous"}


@pytest.mark.parametrize("ground", json.loads(COMMITTED.read_text("utf-8")))
def test_of_the_committed_result_what_is_gone_is_not_trained_again(ground):
    decided = json.loads(COMMITTED.read_text("utf-8"))[ground]["choices"]

    taken = read_choices(COMMITTED, ground)

    assert set(decided) >= GONE
    assert set(taken) == set(decided) - GONE


def test_methods_that_are_gone_stay_in_table_and_figures_as_history(benchmark, tmp_path):
    document = json.loads(COMMITTED.read_text("utf-8"))
    (tmp_path / "generalization.json").write_text(json.dumps(document))

    main(replace(benchmark, output=tmp_path), small)

    with (tmp_path / "generalization.csv").open(encoding="utf-8", newline="") as file:
        kept = {line["ground"] for line in csv.DictReader(file) if line["method"] in GONE}
    assert {*document} - {"biq2021"} <= kept
    assert (tmp_path / "transfer.png").stat().st_size > 10_000


def test_a_ground_that_was_not_decided_is_an_error(benchmark):
    with pytest.raises(ValueError, match="chosen: expected a result with the ground 'mini-ugc'"):
        read_choices(benchmark.output / "generalization.json", "mini-ugc")


@pytest.mark.parametrize(("name", "number"), [("seeds", 1), ("tuning_seeds", 0)])
def test_too_few_seeds_are_an_error(name, number):
    with pytest.raises(ValueError, match=f"{name}: expected at least"):
        Generalization(**{name: number})
