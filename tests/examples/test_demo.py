"""The demo as a user runs it, at its smallest."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from command_line import REPOSITORY, call_command, run_command

from demo import Demo, Gammas
from vqa.training.checkpoint import load_checkpoint
from vqa.training.settings import METHOD_NAMES
from vqa.training.settings import plain as plain_values


def run_demo(folder: Path, *arguments: str, run=call_command) -> subprocess.CompletedProcess[str]:
    settings = {
        "data-dir": folder / "data",
        "output": folder / "output",
        "processes": 1,
        "data.photographs": 1,
        "data.train-clips": 6,
        "data.test-clips": 3,
        "data.frames": 8,
        "data.height": 64,
        "data.width": 80,
        "epochs": 1,
    }
    options = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    return run(REPOSITORY / "examples" / "demo.py", *options, *arguments)


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


@pytest.mark.slow
def test_it_does_so_in_a_process_of_its_own(tmp_path):
    demo = run_demo(tmp_path, "--seeds", "0", "--methods", "plain", run=run_command)

    assert demo.returncode == 0, demo.stderr
    assert (tmp_path / "output" / "figure.png").exists()


def test_every_method_and_seed_has_train_test_ood_and_gap(first):
    runs = results(first[0])["runs"]

    assert {(run["method"], run["seed"]) for run in runs} == {
        (method, seed) for method in ("plain", "rwp", "awp", "awp-update") for seed in (0, 1)
    }
    for run in runs:
        for part in ("train", "test", "ood"):
            assert -1 <= run[f"{part} SRCC"] <= 1
        assert run["gap SRCC"] == run["train SRCC"] - run["test SRCC"]
        assert len(run["landscape"]["losses"]) == 11


def test_every_run_leaves_a_checkpoint_of_the_training_scripts(first):
    checkpoints = sorted((first[0] / "output").rglob("best.pt"))

    settings = [load_checkpoint(file).settings for file in checkpoints]

    assert sorted((own["perturb"].replace("none", "plain"), own["seed"]) for own in settings) == (
        sorted((run["method"], run["seed"]) for run in results(first[0])["runs"])
    )
    of_first = [f for f, own in zip(checkpoints, settings, strict=True) if own["seed"] == 0]
    assert all(str(file) in first[1].stdout for file in of_first)


def test_the_results_say_what_they_were_made_with(first):
    document = results(first[0])

    assert document["seeds"] == [0, 1]
    assert document["data"]["train_clips"] == 6
    assert document["settings"]["epochs"] == 1
    assert {"python", "torch", "torch_awp", "av"} <= set(document["provenance"]["versions"])
    assert document["provenance"]["device"].startswith("cpu")
    assert document["wall_seconds"] > 0


def test_every_method_has_its_own_gamma():
    gammas = Gammas(rwp=0.1, awp=0.2, awp_update=0.3)

    assert [gammas.of(method) for method in METHOD_NAMES] == [0.0, 0.1, 0.2, 0.3]


def test_methods_of_one_seed_differ_in_the_perturbation_alone():
    plain, awp = (plain_values(Demo().settings(method, 3)) for method in ("plain", "awp"))

    assert {name for name in plain if plain[name] != awp[name]} == {"perturb", "gamma"}


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
    assert "2/2" in again.stderr
    after = [run for run in results(folder)["runs"] if run["seed"] < 2]
    assert after == [run for run in before if run["method"] in ("plain", "awp")]


def test_runs_on_other_pixels_are_not_picked_up(first, tmp_path):
    folder, _ = first
    data = tmp_path / "data"
    shutil.copytree(folder / "data", data)
    shutil.copytree(folder / "output", tmp_path / "output")
    one = ("--seeds", "0", "--methods", "plain")
    assert run_demo(tmp_path, *one).returncode == 0  # another place is another training
    trained = len(list((tmp_path / "output" / "runs").iterdir()))
    one_video, other = sorted((data / "train").glob("*.mp4"))[:2]
    one_video.write_bytes(other.read_bytes())

    assert run_demo(tmp_path, *one).returncode == 0

    assert len(list((tmp_path / "output" / "runs").iterdir())) == trained + 1


def test_a_damaged_video_stops_it_with_a_line_that_names_it(first, tmp_path):
    folder, _ = first
    video = sorted((folder / "data" / "test").glob("*.mp4"))[1]
    whole = video.read_bytes()
    video.write_bytes(whole[:500])

    broken = run_demo(folder, "--output", str(tmp_path))
    video.write_bytes(whole)

    assert broken.returncode == 2
    assert video.name in broken.stderr.splitlines()[-1]
    assert not (tmp_path / "results.json").exists()
