"""The landscape script measures, draws and tells what was asked for any checkpoint."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import REPOSITORY, run_command
from video_files import textured_clip, write_video

import landscape
from landscape import Landscape, main
from vqa.demo.checkpoints import Checkpoint, CheckpointError, save_checkpoint
from vqa.demo.experiment import ExperimentSettings, run_method
from vqa.demo.training import TrainingSettings
from vqa.io.label_list import LabelledVideo, write_label_list
from vqa.sampling.tiny_fast_vqa import FragmentSampling, load_clips, to_planes
from vqa.synthetic.mini_ugc import MiniUgcSettings, build_mini_ugc
from vqa.training.landscape import LandscapeSettings

WHERE = LandscapeSettings(points=3, ascent_steps=2)
EXPERIMENT = ExperimentSettings(
    width=4,
    views=1,
    sampling=FragmentSampling(grid=2, patch=8, frames=2),
    training=TrainingSettings(steps=2, batch=4),
    landscape=WHERE,
)


def write_clips(folder: Path) -> Path:
    videos = []
    for number in range(4):
        clip = textured_clip(frames=4, height=32, width=32, seed=number)
        write_video(folder / f"v{number}.mp4", clip, quantiser=10 + 10 * number)
        videos.append(LabelledVideo(f"v{number}.mp4", -1.0, 24.0, 5.0 - number))
    write_label_list(folder / "own.txt", videos)
    return folder / "own.txt"


@pytest.fixture(scope="module")
def label_list(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def trained(label_list):
    clips = to_planes(load_clips(label_list))
    parts = {"train": clips, "test": clips, "ood": clips}
    return [run_method(method, 0, EXPERIMENT, parts) for method in ("plain", "awp")]


@pytest.fixture(scope="module")
def files(trained, tmp_path_factory):
    paths = [tmp_path_factory.mktemp("runs") / f"{run.method}.pt" for run, _ in trained]
    for path, (_, checkpoint) in zip(paths, trained, strict=True):
        save_checkpoint(path, checkpoint)
    return tuple(paths)


@pytest.fixture
def settings(files, label_list, tmp_path):
    return Landscape(files, str(label_list), output=tmp_path / "out", samples=2, landscape=WHERE)


def document(settings: Landscape) -> dict:
    return json.loads((settings.output / "landscape.json").read_text(encoding="utf-8"))


def changed(checkpoint: Checkpoint, path: Path, **changes) -> Path:
    save_checkpoint(path, replace(checkpoint, **changes))
    return path


def test_it_finds_what_the_training_run_reported(settings, trained):
    main(settings)

    for found, (run, _) in zip(document(settings)["models"], trained, strict=True):
        assert found["curves"] == [list(run.curve)]
        assert found["sharpness"]["worst"] == run.sharpness


def test_the_middle_of_every_curve_and_surface_is_the_models_loss(settings):
    main(replace(settings, directions=2, surface=True))

    for found in document(settings)["models"]:
        first, second = found["curves"]
        assert first[1] == second[1] == found["surface"][1][1] == found["loss"]
        assert first != second


def test_the_surface_begins_with_the_first_curve(settings):
    main(replace(settings, surface=True))

    for found in document(settings)["models"]:
        assert [row[1] for row in found["surface"]] == found["curves"][0]
        assert abs(found["cosine"]) < 0.1


@pytest.mark.parametrize("surface", [False, True])
def test_pictures_are_written_as_asked_for(settings, surface):
    main(replace(settings, surface=surface))

    pictures = {path.name: path.read_bytes()[:4] for path in settings.output.glob("*.png")}
    names = ["curves.png", "surfaces.png"] if surface else ["curves.png"]
    assert pictures == dict.fromkeys(names, b"\x89PNG")


def test_the_table_has_a_line_for_every_model(settings, capsys):
    main(settings)

    plain, awp = (found["sharpness"] for found in document(settings)["models"])
    lines = capsys.readouterr().out.splitlines()
    (shown,) = (line for line in lines if line.startswith("plain AdamW, seed 0"))
    assert shown.split()[-2:] == [f"{plain['worst']:.5f}", f"{plain['average']:.5f}"]
    (shown,) = (line for line in lines if line.startswith("AWP, gamma 0.01, seed 0"))
    assert shown.split()[-2:] == [f"{awp['worst']:.5f}", f"{awp['average']:.5f}"]


def test_the_progress_bar_ends_with_the_last_loss(settings, capsys):
    main(replace(settings, directions=2, surface=True))

    # Each: the centre, 2 + 1 on the ascent, 2 + 1 on the samples, 2 curves of 3, a plane of 9.
    assert "44/44" in capsys.readouterr().err


def test_another_seed_is_another_direction(settings):
    main(settings)
    first = document(settings)["models"][0]
    main(replace(settings, seed=1))
    second = document(settings)["models"][0]

    assert first["curves"] != second["curves"]
    assert first["loss"] == second["loss"]


def test_scores_of_a_users_list_are_not_called_synthetic(settings, capsys):
    main(settings)

    assert document(settings)["opinion_scores"] == "as in the label list"
    assert "own, 4 clips" in capsys.readouterr().out


@pytest.mark.parametrize("cached", [True, False])
def test_mini_ugc_is_known_by_name_and_called_synthetic(
    settings, tmp_path, monkeypatch, capsys, cached
):
    smallest = MiniUgcSettings(photographs=1, train_clips=2, test_clips=3, frames=4)
    monkeypatch.setattr(landscape, "DEFAULT_FOLDER", tmp_path / "mini-ugc")
    if cached:  # the script must take it, although it is not of the default settings
        build_mini_ugc(tmp_path / "mini-ugc", smallest)
    else:
        monkeypatch.setattr(landscape, "MiniUgcSettings", lambda: smallest)

    main(replace(settings, dataset="mini-ugc", part="test"))

    assert document(settings)["clips"] == 3
    assert document(settings)["opinion_scores"] == "synthetic"
    assert "3 test clips, synthetic opinion scores" in capsys.readouterr().out


def test_models_that_would_be_called_alike_are_told_apart_by_file(settings, trained, tmp_path):
    _, checkpoint = trained[0]
    copies = tuple(changed(checkpoint, tmp_path / name / "0.pt") for name in "ab")

    main(replace(settings, checkpoint=copies))

    names = [found["name"] for found in document(settings)["models"]]
    assert names == [f"plain AdamW, seed 0 ({Path(name, '0.pt')})" for name in "ab"]


def test_the_picture_grows_with_the_number_of_models(settings, trained, tmp_path):
    _, checkpoint = trained[0]
    many = tuple(changed(checkpoint, tmp_path / f"{seed}.pt", seed=seed) for seed in range(40))

    main(replace(settings, checkpoint=many))  # matplotlib would warn of axes without room

    assert (settings.output / "curves.png").exists()


def test_losses_that_do_not_compare_are_an_error_that_names_the_files(settings, trained, tmp_path):
    other = changed(trained[1][1], tmp_path / "other.pt", rank_weight=1.0)

    with pytest.raises(
        CheckpointError, match=r"other\.pt: expected rank_weight 0\.3 as in .*plain"
    ):
        main(replace(settings, checkpoint=(settings.checkpoint[0], other)))


def test_a_model_of_other_planes_is_an_error_that_names_the_file(settings, trained, tmp_path):
    model = landscape.load_model(settings.checkpoint[0])[0]
    weights = {**model.state_dict(), "space.0.weight": torch.zeros(4, 5, 4, 4)}
    other = changed(
        trained[0][1],
        tmp_path / "other.pt",
        weights=weights,
        model_settings={"planes": 5, "width": 4},
    )

    with pytest.raises(CheckpointError, match=r"other\.pt: expected a model of 3 planes, got .*5"):
        main(replace(settings, checkpoint=(other,)))


@pytest.mark.parametrize("checkpoint", [(), (Path("a.pt"), Path("a.pt"))], ids=["none", "twice"])
def test_every_checkpoint_counts_once(checkpoint):
    with pytest.raises(ValueError, match="checkpoint: expected one or more, each once"):
        Landscape(checkpoint)


def test_it_runs_from_the_command_line(settings, tmp_path):
    arguments = ["--checkpoint", *settings.checkpoint, "--dataset", settings.dataset]
    arguments += ["--output", tmp_path / "out", "--landscape.points", "3"]

    run = run_command(REPOSITORY / "examples" / "landscape.py", *arguments)

    assert run.returncode == 0, run.stderr
    assert (tmp_path / "out" / "curves.png").exists()
