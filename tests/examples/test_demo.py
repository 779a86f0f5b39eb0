"""The demo as a user runs it, at its smallest."""

import json
import subprocess
from pathlib import Path

import pytest
from command_line import REPOSITORY, run_command

from demo import Demo
from vqa.demo.checkpoints import load_model


def run_demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    settings = {
        "data-dir": folder / "data",
        "output": folder / "output",
        "processes": 1,
        "data.photographs": 2,
        "data.train-clips": 4,
        "data.test-clips": 3,
        "experiment.width": 4,
        "experiment.views": 1,
        "experiment.training.steps": 3,
        "experiment.training.batch": 4,
    }
    options = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    return run_command(REPOSITORY / "examples" / "demo.py", *options, *arguments)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return folder, run_demo(folder, "--seeds", "0", "1")


def results(folder: Path) -> dict:
    return json.loads((folder / "output" / "results.json").read_text(encoding="utf-8"))


def test_it_runs_through_and_writes_its_files(first):
    folder, demo = first

    assert demo.returncode == 0, demo.stderr
    for name in ("results.json", "results.csv", "figure.png"):
        assert (folder / "output" / name).stat().st_size > 0


def test_every_method_and_seed_has_train_test_ood_and_gap(first):
    runs = results(first[0])["runs"]

    assert {(run["method"], run["seed"]) for run in runs} == {
        (method, seed) for method in ("plain", "rwp", "awp", "awp-previous") for seed in (0, 1)
    }
    for run in runs:
        for part in ("train", "test", "ood", "gap"):
            assert set(run[part]) == {"srcc", "plcc"}


def test_every_run_leaves_a_checkpoint(first):
    checkpoints = sorted((first[0] / "output").rglob("*.pt"))

    loaded = [load_model(file)[1] for file in checkpoints]

    assert {(own.method, own.seed) for own in loaded} == {
        (run["method"], run["seed"]) for run in results(first[0])["runs"]
    }
    assert all(str(file) in first[1].stdout for file in checkpoints if "-0" in file.name)


def test_the_results_say_what_they_were_made_with(first):
    document = results(first[0])

    assert document["seeds"] == [0, 1]
    assert document["configuration"]["experiment"]["training"]["steps"] == 3
    assert {"python", "torch", "torch_awp", "av"} <= set(document["configuration"]["versions"])
    assert document["device"].startswith("cpu")
    assert document["wall_seconds"] > 0


@pytest.mark.parametrize("seeds", [(), (0, 1, 0)], ids=["none", "twice"])
def test_every_seed_counts_once(seeds):
    with pytest.raises(ValueError, match="seeds: expected one or more, each once"):
        Demo(seeds=seeds)


def test_the_scores_are_called_synthetic(first):
    folder, demo = first

    assert "synthetic" in demo.stdout
    assert results(folder)["opinion_scores"] == "synthetic"


def test_a_second_run_trains_only_what_is_missing(first):
    folder, _ = first
    before = results(folder)["runs"]

    again = run_demo(folder, "--seeds", "0", "1", "2", "--methods", "plain", "awp")

    assert again.returncode == 0, again.stderr
    assert "2/2 runs" in again.stderr
    after = [run for run in results(folder)["runs"] if run["seed"] < 2]
    assert after == [run for run in before if run["method"] in ("plain", "awp")]


def test_a_damaged_video_stops_it_before_training(first, tmp_path):
    folder, _ = first
    video = sorted((folder / "data" / "test").glob("*.mp4"))[1]
    whole = video.read_bytes()
    video.write_bytes(whole[:500])

    broken = run_demo(folder, "--output", str(tmp_path))
    video.write_bytes(whole)

    assert broken.returncode != 0
    assert "test.txt, row 2" in broken.stderr
    assert video.name in broken.stderr
    assert "training" not in broken.stderr
