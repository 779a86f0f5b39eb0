"""A call of a script: data in, every split trained, results out; killed and started again."""

import csv
import json
import math
import re
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from full_disk import room_for
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_task import toy_samples, toy_task, with_settings

import sama_vqa
from vqa.datasets import load_dataset
from vqa.datasets.splits import split
from vqa.io.files import InUseError
from vqa.metrics import agreement
from vqa.training import main
from vqa.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)
from vqa.training.loop import TrainingRun
from vqa.training.main import output_folder, run_script
from vqa.training.optim import load_initial_weights
from vqa.training.settings import plain
from vqa.training.split_samples import parts_of


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set in the four-column format whose files hold nothing."""
    root = tmp_path / "data"
    root.mkdir()
    rows = []
    for sample in toy_samples(40):
        (root / sample.path).touch()
        rows.append(f"{sample.path}, -1, -1, {sample.score}\n")
    (root / "labels.txt").write_text("".join(rows))
    return root


def settings_for(data, tmp_path, **changes):
    usual = {
        "dataset": "list",
        "data_root": data,
        "annotations": data / "labels.txt",
        "output": tmp_path / "out",
        "epochs": 2,
    }
    return with_settings(**{**usual, **changes})


def run(settings, **changes):
    path = run_script(settings, toy_task(settings))
    assert path is not None
    return json.loads(path.read_text())


def test_results_hold_scores_gap_settings_and_where_they_come_from(data, tmp_path, capsys):
    results = run(settings_for(data, tmp_path))

    split = results["splits"][0]
    assert split["sizes"] == {"train": 29, "validation": 3, "test": 8}
    assert split["gap"]["srcc"] == pytest.approx(split["train"]["srcc"] - split["test"]["srcc"])
    assert results["opinion_scores"] == "human"
    assert results["settings"]["gamma"] == 0.01
    assert torch.__version__.startswith(results["provenance"]["versions"]["torch"])
    assert re.fullmatch(r"[0-9a-f]{12}(-dirty)?", results["provenance"]["git_revision"])
    assert results["median"]["test"] == split["test"]
    assert "SRCC" in capsys.readouterr().out


def test_every_split_is_trained_and_the_median_reported(data, tmp_path):
    results = run(settings_for(data, tmp_path, splits=(0, 1, 2), protocol="sama"))

    assert [split["split"] for split in results["splits"]] == [0, 1, 2]
    scores = sorted(split["test"]["srcc"] for split in results["splits"])
    assert results["median"]["test"]["srcc"] == scores[1]
    first, second, third = (
        torch.load(tmp_path / "out" / f"split-{split}" / "best.pt", weights_only=True)
        for split in range(3)
    )
    weights = [saved["state_dict"]["backbone.0.weight"] for saved in (first, second, third)]
    assert not weights[0].equal(weights[1])
    assert not weights[1].equal(weights[2])


def test_a_split_that_is_not_there_is_refused_before_any_other_is_trained(data, tmp_path):
    with pytest.raises(ValueError, match="expected 0 to 0 for the protocol 'paper', got 1"):
        run(settings_for(data, tmp_path, splits=(0, 1)))
    assert not (tmp_path / "out").exists()


def test_other_data_sets_are_tested_too(data, tmp_path):
    results = run(settings_for(data, tmp_path, also_test=(f"list={data},{data / 'labels.txt'}",)))

    assert results["splits"][0]["sizes"]["list"] == 40
    assert set(results["median"]["list"]) == {"srcc", "plcc", "krcc", "rmse"}


def test_another_data_sets_own_annotations_count(data, tmp_path):
    few = tmp_path / "few.txt"
    lines = (data / "labels.txt").read_text("utf-8").splitlines(keepends=True)
    few.write_text("".join(lines[:12]), "utf-8")

    results = run(settings_for(data, tmp_path, also_test=(f"list={data},{few}",)))

    assert results["splits"][0]["sizes"]["list"] == 12


@pytest.mark.parametrize("entry", ["live-vqc", "=x", "live-vqc=", "list=a,"])
def test_another_data_set_must_be_named_and_placed(data, tmp_path, entry):
    with pytest.raises(ValueError, match="also_test: expected NAME=ROOT"):
        run(settings_for(data, tmp_path, also_test=(entry,)))


def test_the_epoch_is_chosen_on_validation_samples_unless_told_otherwise(data, tmp_path):
    by_validation = run(settings_for(data, tmp_path, output=tmp_path / "a"))["splits"][0]
    by_test = run(settings_for(data, tmp_path, output=tmp_path / "b", select_on="test"))
    by_test = by_test["splits"][0]
    last = run(settings_for(data, tmp_path, output=tmp_path / "c", select_on="last"))["splits"][0]

    assert "validation" in by_validation["sizes"]
    assert by_validation["validation"] is not None
    assert by_test["sizes"] == {"train": 32, "test": 8}
    assert last["best_epoch"] == 2
    log = (tmp_path / "b" / "split-0" / "log.csv").read_text().splitlines()
    epochs = {int(row["epoch"]): float(row["selection_srcc"]) for row in csv.DictReader(log)}
    assert by_test["test"]["srcc"] == pytest.approx(epochs[by_test["best_epoch"]])


def test_a_finished_run_is_not_trained_again(data, tmp_path):
    settings = settings_for(data, tmp_path)
    first = run(settings)
    saved = (tmp_path / "out" / "split-0" / "last.pt").stat().st_mtime_ns

    second = run(settings)

    assert (tmp_path / "out" / "split-0" / "last.pt").stat().st_mtime_ns == saved
    assert second["splits"] == first["splits"] or _equal_but_memory(first, second)


def _equal_but_memory(first, second):
    for results in (first, second):
        for own in results["splits"]:
            del own["peak_memory_bytes"]
    return first["splits"] == second["splits"]


def test_an_interrupted_run_gives_the_same_scores(data, tmp_path, monkeypatch):
    whole = run(settings_for(data, tmp_path, output=tmp_path / "whole"))
    settings = settings_for(data, tmp_path, save_every=3)
    saves = []

    def save_and_die(self, path, save=None):
        original(self, path)
        saves.append(self.state.step)
        if len(saves) == 2:
            raise KeyboardInterrupt

    from vqa.training.loop import TrainingRun

    original = TrainingRun.save
    monkeypatch.setattr(TrainingRun, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        run(settings)
    monkeypatch.undo()
    resumed = run(settings)

    for part in ("train", "validation", "test"):
        assert resumed["splits"][0][part] == whole["splits"][0][part]
    assert 0 < saves[1] < resumed["splits"][0]["steps"]
    assert logged(tmp_path / "out") == logged(tmp_path / "whole")


def logged(folder):
    """The table without what depends on the clock, and TensorBoard's points."""
    with (folder / "split-0" / "log.csv").open() as file:
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    events = EventAccumulator(str(folder / "split-0" / "events")).Reload()
    points = {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if tag != "epoch/seconds"
    }
    return rows, points


def test_the_logs_hold_every_epoch_and_every_step_once(data, tmp_path):
    settings = settings_for(data, tmp_path)
    steps = run(settings)["splits"][0]["steps"]
    rows, points = logged(tmp_path / "out")
    run(settings)  # finished: nothing to add, nothing to hide

    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [step for step, _ in points["loss"]] == list(range(1, steps + 1))
    assert [step for step, _ in points["epoch/selection_srcc"]] == [steps // 2, steps]
    assert logged(tmp_path / "out") == (rows, points)


def test_a_folder_of_other_settings_is_refused_unless_the_run_begins_again(data, tmp_path):
    run(settings_for(data, tmp_path))
    other = {"gamma": 0.02}

    with pytest.raises(CheckpointError, match="choose another --output, or --resume never"):
        run(settings_for(data, tmp_path, **other))
    assert run(settings_for(data, tmp_path, resume="never", **other))["settings"]["gamma"] == 0.02


def test_a_run_that_began_again_and_was_interrupted_does_not_go_on_from_the_old_one(data, tmp_path):
    run(settings_for(data, tmp_path))
    again = settings_for(data, tmp_path, resume="never")

    def interrupted(path, generator):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_script(again, replace(toy_task(again), read=interrupted))

    assert not (tmp_path / "out" / "split-0" / "last.pt").exists()


def test_trained_weights_can_be_tested_alone(data, tmp_path):
    trained = run(settings_for(data, tmp_path))
    best = tmp_path / "out" / "split-0" / "best.pt"

    tested = run(settings_for(data, tmp_path, evaluate=best, output=tmp_path / "tested"))

    assert tested["splits"][0]["test"] == trained["splits"][0]["test"]
    assert tested["splits"][0]["steps"] == 0


def test_a_checkpoint_says_what_the_model_is_and_how_its_inputs_are_cut(data, tmp_path):
    results = run(settings_for(data, tmp_path))
    checkpoint = load_checkpoint(tmp_path / "out" / "split-0" / "best.pt")

    assert (checkpoint.script, checkpoint.epoch) == ("toy", results["splits"][0]["best_epoch"])
    assert json.loads(json.dumps(checkpoint.settings)) == results["settings"]


def test_its_scores_have_the_scale_of_the_training_part(data, tmp_path):
    run(settings_for(data, tmp_path, select_on="last"))
    scale = load_checkpoint(tmp_path / "out" / "split-0" / "best.pt").scale

    numbers, _ = split(40)
    scores = [toy_samples(40)[number].score for number in numbers]
    assert scale is not None
    assert scale.opinion(scale.predicted_mean) == pytest.approx(statistics.mean(scores))
    assert scale.opinion_deviation == pytest.approx(statistics.pstdev(scores))


def test_its_scores_have_a_scale_where_the_training_part_is_not_scored(data, tmp_path):
    usual = run(settings_for(data, tmp_path))["splits"][0]["scale"]
    other = tmp_path / "unscored"

    split = run(settings_for(data, tmp_path, output=other, train_score=False))["splits"][0]

    assert split["train"] is None
    assert split["scale"] == usual
    assert load_checkpoint(other / "split-0" / "best.pt").scale == tuple(usual.values())


def test_of_a_large_training_part_that_is_not_scored_a_sample_gives_the_scale(
    data, tmp_path, monkeypatch
):
    monkeypatch.setattr(main, "_ENOUGH", 10)
    settings = settings_for(data, tmp_path, train_score=False)
    train = parts_of(load_dataset("list", data), {}, settings, 0).train

    scale = run(settings)["splits"][0]["scale"]

    assert len(train) == 29
    assert scale["opinion_mean"] == pytest.approx(statistics.mean(s.score for s in train[::3]))


def test_scores_that_come_to_nothing_have_no_scale_and_a_line_says_so(data, tmp_path, capsys):
    settings = settings_for(data, tmp_path, learning_rate=1e30, schedule="fixed")

    split = run(settings)["splits"][0]

    assert split["scale"] is None
    assert load_checkpoint(tmp_path / "out" / "split-0" / "best.pt").scale is None
    assert "the checkpoint has no scale of opinion scores" in capsys.readouterr().out


def predictions(folder):
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_prediction_stands_beside_the_results_that_follow_from_it(data, tmp_path):
    split = run(settings_for(data, tmp_path))["splits"][0]
    rows = predictions(tmp_path / "out")

    assert list(rows[0]) == ["path", "score", "opinion", "part"]
    for part in ("train", "validation", "test"):
        own = [row for row in rows if row["part"] == part]
        assert len(own) == split["sizes"][part]
        scores, opinions = ([float(row[name]) for row in own] for name in ("score", "opinion"))
        assert agreement(scores, opinions).srcc == pytest.approx(split[part]["srcc"])
    opinions = {str(data / sample.path): sample.score for sample in toy_samples(40)}
    assert {row["path"]: float(row["opinion"]) for row in rows} == opinions


def test_predictions_of_several_splits_say_of_which(data, tmp_path):
    results = run(settings_for(data, tmp_path, splits=(0, 2), protocol="sama"))
    rows = predictions(tmp_path / "out")

    for result in results["splits"]:
        own = [row for row in rows if row["split"] == str(result["split"])]
        assert len(own) == sum(result["sizes"].values()) == 40


def test_testing_alone_writes_the_same_predictions(data, tmp_path):
    run(settings_for(data, tmp_path))
    best = tmp_path / "out" / "split-0" / "best.pt"

    run(settings_for(data, tmp_path, evaluate=best, output=tmp_path / "tested"))

    assert predictions(tmp_path / "tested") == predictions(tmp_path / "out")


def test_all_files_of_a_list_can_be_tested(data, tmp_path):
    run(settings_for(data, tmp_path))
    best = tmp_path / "out" / "split-0" / "best.pt"
    everything = {"evaluate": best, "output": tmp_path / "all", "part": "all"}

    split = run(settings_for(data, tmp_path, **everything))["splits"][0]

    assert split["sizes"] == {"test": 40}
    trained = {row["path"]: row["score"] for row in predictions(tmp_path / "out")}
    assert {row["path"]: row["score"] for row in predictions(tmp_path / "all")} == trained


def test_of_all_files_there_is_one_split_and_no_part_to_train_on(data, tmp_path):
    run(settings_for(data, tmp_path))
    best = tmp_path / "out" / "split-0" / "best.pt"
    everything = {"evaluate": best, "output": tmp_path / "all", "part": "all"}
    few = (data / "labels.txt").read_text().splitlines(keepends=True)[:2]
    (data / "labels.txt").write_text("".join(few))
    several = {"splits": (0, 1, 2), "protocol": "sama", "drop_last": True}

    results = run(settings_for(data, tmp_path, **everything, **several))

    assert [split["sizes"] for split in results["splits"]] == [{"test": 2}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "part: 'all' has an effect with evaluate only"),
        ({"evaluate": Path("a"), "landscape_points": 3}, "landscape_points: of the loss on the tr"),
    ],
)
def test_all_files_are_no_part_to_train_on(changes, message):
    with pytest.raises(ValueError, match=message):
        with_settings(part="all", **changes)


@pytest.mark.parametrize("use", ["evaluate", "finetune_from"])
def test_checkpoints_of_older_versions_are_refused(data, tmp_path, use):
    old = tmp_path / "old.pt"
    torch.save({"format": "torch-awp examples, weights", "script": "toy", "state_dict": {}}, old)
    settings = settings_for(data, tmp_path, **{use: old})
    task = toy_task(settings)
    task = replace(task, build=lambda: load_initial_weights(toy_task().build(), settings))

    with pytest.raises(CheckpointError, match=r"old\.pt: expected version 2 .* got 1"):
        run_script(settings, task)


def test_testing_alone_does_not_overwrite_the_results_of_the_training(data, tmp_path):
    training = settings_for(data, tmp_path, output=None)
    testing = settings_for(data, tmp_path, output=None, evaluate=Path("best.pt"))

    folders = [output_folder(toy_task(), settings) for settings in (training, testing)]

    assert [folder.name for folder in folders] == ["list-awp-seed-42", "list-evaluated"]


def test_bad_files_are_counted_at_the_end(data, tmp_path, capsys):
    text = (data / "labels.txt").read_text()
    (data / "bad-50-3").touch()
    (data / "labels.txt").write_text(text + "bad-50-3, -1, -1, 3\n")

    results = run(settings_for(data, tmp_path, bad_files="skip"))

    assert len(results["splits"][0]["bad_files"]) == 1
    assert "bad-50-3" in results["splits"][0]["bad_files"][0]
    assert "left out: 1 files that cannot be read" in capsys.readouterr().out


def test_a_training_without_any_readable_file_is_no_training(data, tmp_path):
    (data / "labels.txt").write_text("".join(f"bad-{n}-1, -1, -1, {n}\n" for n in range(10)))
    for n in range(10):
        (data / f"bad-{n}-1").touch()

    with pytest.raises(ValueError, match="bad_files: expected something to train on"):
        run(settings_for(data, tmp_path, bad_files="skip"))


def test_predictions_that_come_to_nothing_give_no_score_but_a_result(data, tmp_path):
    settings = settings_for(data, tmp_path, learning_rate=1e30, schedule="fixed")

    split = run(settings)["splits"][0]

    assert split["test"] == {"srcc": None, "plcc": None, "krcc": None, "rmse": None}


def test_a_part_with_equal_opinion_scores_is_not_measured_and_the_last_epoch_counts(data, tmp_path):
    settings = settings_for(data, tmp_path)
    parts = parts_of(load_dataset("list", data), {}, settings, 0)
    validation = {sample.path.name for sample in parts.validation}
    rows = [row.split(",") for row in (data / "labels.txt").read_text().splitlines()]
    equal = [[*row[:3], "3.0" if row[0] in validation else row[3]] for row in rows]
    (data / "labels.txt").write_text("".join(f"{','.join(row)}\n" for row in equal))

    with pytest.warns(UserWarning, match="validation: expected different .* 3 files, all .* 3;"):
        split = run(settings)["splits"][0]

    assert set(split["validation"].values()) == {None}
    assert None not in split["test"].values()
    assert split["best_epoch"] == 2


def test_equal_opinion_scores_of_everything_give_no_score_but_a_result(data, tmp_path):
    rows = (data / "labels.txt").read_text().splitlines()
    (data / "labels.txt").write_text("".join(f"{row.rsplit(',', 1)[0]}, 0\n" for row in rows))

    with pytest.warns(UserWarning, match="expected different opinion scores") as warned:
        # Plain, since without differences nothing but rounding says whether there is a gradient.
        split = run(settings_for(data, tmp_path, perturb="none"))["splits"][0]

    assert set(split["test"].values()) == set(split["train"].values()) == {None}
    told = "\n".join(str(warning.message) for warning in warned)
    for part in ("test", "train", "validation"):
        assert f"{part}: expected" in told
    for count in (8, 29, 3):
        assert f"got {count} files, all with the opinion score 0;" in told


def test_the_landscape_is_measured_on_request(data, tmp_path):
    landscape = run(settings_for(data, tmp_path, landscape_points=5))["splits"][0]["landscape"]

    assert len(landscape["losses"]) == len(landscape["positions"]) == 5
    assert landscape["sharpness"] > 0
    assert all(math.isfinite(loss) for loss in landscape["losses"])


def test_a_dry_run_tells_all_and_writes_nothing(data, tmp_path, capsys):
    settings = settings_for(data, tmp_path, dry_run=True)

    assert run_script(settings, toy_task(settings)) is None

    told = capsys.readouterr().out
    for what in ("29 train", "3 validation", "8 test", "Toy", "inputs [4, 6]", "GiB", "steps of"):
        assert what in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "least", "most"),
    [
        ({"perturb": "none"}, 1, 1),
        ({"perturb": "awp-update"}, 1, 1),
        ({"perturb": "awp", "steps": 2}, 3, 3),
        ({"perturb": "awp", "perturb_end": True}, 1.01, 1.5),  # the head is a small part
    ],
    ids=str,
)
def test_a_dry_run_tells_the_passes_of_a_step(data, tmp_path, capsys, changes, least, most):
    settings = settings_for(data, tmp_path, dry_run=True, **changes)

    run_script(settings, toy_task(settings))

    (passes,) = re.findall(r"([\d.]+) passes a step", capsys.readouterr().out)
    assert least <= float(passes) <= most


def test_a_dry_run_shows_data_and_model_before_it_measures(data, tmp_path, capsys, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingRun, "steps", interrupted)
    settings = settings_for(data, tmp_path, dry_run=True)

    with pytest.raises(KeyboardInterrupt):
        run_script(settings, toy_task(settings))

    told = capsys.readouterr().out
    for what in ("29 train", "Toy", "perturb"):
        assert what in told


def test_a_dry_run_measures_long_steps_once(data, tmp_path, monkeypatch):
    taken = []

    def steps(self):
        for step in every_step(self):
            taken.append(step)
            yield step

    every_step = TrainingRun.steps
    monkeypatch.setattr(TrainingRun, "steps", steps)
    monkeypatch.setattr("vqa.training.dry_run._LONG_ENOUGH_SECONDS", 0.0)
    settings = settings_for(data, tmp_path, dry_run=True)

    run_script(settings, toy_task(settings))

    assert len(taken) == 1


def touched(data, name):
    """The file changes, its name and label do not."""
    (data / name).write_text("other pixels")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: {"gamma": 0.02}, "gamma was 0.01 and is 0.02"),
        (lambda data: touched(data, toy_samples(40)[3].path) or {}, "the files of the samples"),
        (lambda data: {"validation_share": 0.2}, "the labels of the samples that train changed"),
    ],
)
def test_what_decides_a_result_decides_whether_it_is_found_finished(
    data, tmp_path, change, message
):
    settings = settings_for(data, tmp_path)
    run(settings)

    with pytest.raises(CheckpointError, match=message):
        run(replace(settings, **change(data)))


def test_the_same_names_and_labels_in_another_folder_are_another_run(data, tmp_path):
    settings = settings_for(data, tmp_path)
    run(settings)
    other = tmp_path / "other"
    shutil.copytree(data, other)

    with pytest.raises(CheckpointError, match=r"data_root was .*data' and is .*other'"):
        run(replace(settings, data_root=other, annotations=other / "labels.txt"))


def test_other_weights_to_begin_with_are_another_run(data, tmp_path):
    weights = tmp_path / "weights.pt"
    settings = settings_for(data, tmp_path, finetune_from=weights)
    weights.write_bytes(b"first")
    run(settings)
    weights.rename(tmp_path / "elsewhere.pt")
    run(replace(settings, finetune_from=tmp_path / "elsewhere.pt"))
    weights.write_bytes(b"second")

    with pytest.raises(CheckpointError, match="the content of finetune_from changed"):
        run(settings)


def test_a_run_that_is_taken_up_or_found_finished_says_so(data, tmp_path, capsys):
    settings = settings_for(data, tmp_path)
    run(settings)
    assert "split-0: " not in capsys.readouterr().out

    run(settings)

    (line,) = [line for line in capsys.readouterr().out.splitlines() if "split-0: " in line]
    assert line.endswith("found finished with these settings and files, not trained again")


def test_a_folder_belongs_to_one_running_training(data, tmp_path):
    settings = settings_for(data, tmp_path)
    inside = []

    def second(path, generator):
        if not inside:
            inside.append(True)
            with pytest.raises(InUseError, match=r"out: expected that no other command writes"):
                run(settings_for(data, tmp_path, seed=1))
        return toy_task(settings).read(path, generator)

    run_script(settings, replace(toy_task(settings), read=second))

    assert inside
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["settings"]["seed"] == settings.seed
    alone = run(settings_for(data, tmp_path, output=tmp_path / "alone"))
    assert results["splits"][0]["test"] == alone["splits"][0]["test"]


@pytest.mark.parametrize("changes", [{"epoch": 1}, {"run": "another"}, {"run": None}])
def test_weights_that_this_run_has_not_written_are_not_reported(data, tmp_path, changes):
    settings = settings_for(data, tmp_path, select_on="last")
    run(settings)
    best = tmp_path / "out" / "split-0" / "best.pt"
    save_checkpoint(best, replace(load_checkpoint(best), **changes))

    with pytest.raises(CheckpointError, match=r"best\.pt: expected epoch 2 as this run wrote it"):
        run(settings)


def test_results_of_an_older_run_do_not_lie_beside_a_new_one_that_fails(data, tmp_path):
    run(settings_for(data, tmp_path))
    again = settings_for(data, tmp_path, resume="never", seed=1)

    def interrupted(path, generator):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_script(again, replace(toy_task(again), read=interrupted))

    assert not (tmp_path / "out" / "results.json").exists()
    assert not (tmp_path / "out" / "predictions.csv").exists()


def test_folders_are_told_apart_by_the_seed_where_none_is_given(data, tmp_path):
    folders = {
        output_folder(toy_task(own), own).name
        for own in (settings_for(data, tmp_path, output=None, seed=seed) for seed in (1, 2))
    }

    assert folders == {"list-awp-seed-1", "list-awp-seed-2"}


@pytest.mark.parametrize("room", [100, 2000, 5000])
def test_a_disk_that_is_full_ends_a_training_with_an_error_that_names_a_file(
    data, tmp_path, room, capsys
):
    with pytest.raises(OSError, match="File too large") as found, room_for(room):
        run(settings_for(data, tmp_path))

    assert str(tmp_path / "out") in found.value.filename
    for file in (tmp_path / "out").rglob("*.pt"):
        torch.load(file, weights_only=True)  # what is there is whole
    assert not list((tmp_path / "out").rglob(".*.pt"))


def test_weights_of_another_script_or_cut_are_not_tested_silently(data, tmp_path, capsys):
    run(settings_for(data, tmp_path))
    best = tmp_path / "out" / "split-0" / "best.pt"
    save_checkpoint(best, replace(load_checkpoint(best), script="sama_vqa"))

    run(settings_for(data, tmp_path, evaluate=best, output=tmp_path / "tested"))

    assert "best.pt was trained by sama_vqa.py, which cuts files in another" in (
        capsys.readouterr().out
    )


def test_weights_that_were_trained_on_other_cuts_are_not_tested_silently(tmp_path):
    settings = replace(sama_vqa.PRESETS["tiny"][1], variant="sama-c", test_clips=2)
    task = sama_vqa.task(settings)
    trained = Checkpoint("sama_vqa", plain(settings), 1, {})
    save_checkpoint(tmp_path / "best.pt", trained)
    other = replace(settings, variant="sama-mix")

    assert list(main._trained_otherwise(task, settings, tmp_path / "best.pt")) == []
    (line,) = main._trained_otherwise(task, other, tmp_path / "best.pt")
    assert "was trained with variant 'sama-c', it is tested with 'sama-mix'" in line
