"""The landscape script measures, draws and tells what was asked for any checkpoint."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import IN_THIS_PROCESS_AND_ITS_OWN, REPOSITORY

import fast_vqa
import sama_iqa
from landscape import Landscape, main
from vqa.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from vqa.training.landscape import LandscapeSettings
from vqa.training.main import run_script

WHERE = LandscapeSettings(points=3)


@pytest.fixture(scope="module")
def trained(few_videos, tmp_path_factory):
    """Results of two trainings, and their checkpoints."""
    found = []
    for perturb in ("none", "awp"):
        output = tmp_path_factory.mktemp(perturb)
        settings = replace(
            fast_vqa.PRESETS["tiny"][1],
            **few_videos,
            perturb=perturb,
            epochs=1,
            batch=4,
            test_clips=1,
            select_on="last",
            landscape_points=3,
            output=output,
        )
        results = json.loads(run_script(settings, fast_vqa.task(settings)).read_text("utf-8"))
        found.append((results["splits"][0], output / "split-0" / "best.pt"))
    return found


@pytest.fixture
def settings(trained, tmp_path):
    files = tuple(file for _, file in trained)
    return Landscape(files, output=tmp_path / "out", samples=2, batches=1, landscape=WHERE)


def document(settings: Landscape) -> dict:
    return json.loads((settings.output / "landscape.json").read_text(encoding="utf-8"))


def changed(file: Path, path: Path, script: str = "fast_vqa", **changes: object) -> Path:
    """A checkpoint with other settings."""
    own = load_checkpoint(file)
    settings = {**own.settings, **changes}
    save_checkpoint(path, replace(own, script=script, settings=settings))
    return path


def test_it_finds_what_the_training_run_reported(settings, trained):
    main(replace(settings, batches=Landscape.batches))

    for found, (split, _) in zip(document(settings)["models"], trained, strict=True):
        assert found["curves"] == [split["landscape"]["losses"]]
        assert found["sharpness"]["worst"] == split["landscape"]["sharpness"]


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
    (shown,) = (line for line in lines if line.startswith("plain AdamW, seed 42"))
    assert shown.split()[-2:] == [f"{plain['worst']:.5f}", f"{plain['average']:.5f}"]
    (shown,) = (line for line in lines if line.startswith("AWP, gamma 0.01, seed 42"))
    assert shown.split()[-2:] == [f"{awp['worst']:.5f}", f"{awp['average']:.5f}"]


def test_the_progress_bar_ends_with_the_last_loss(settings, capsys):
    main(replace(settings, directions=2, surface=True))

    # Each: the centre, 5 + 1 on the ascent, 2 + 1 on the samples, 2 curves of 3, a plane of 9.
    assert "50/50" in capsys.readouterr().err


def test_another_seed_is_another_direction(settings):
    main(settings)
    first = document(settings)["models"][0]
    main(replace(settings, seed=1))
    second = document(settings)["models"][0]

    assert first["curves"] != second["curves"]
    assert first["loss"] == second["loss"]


def test_it_looks_at_the_training_part_unless_asked_otherwise(settings, capsys):
    sizes, one = {}, replace(settings, checkpoint=settings.checkpoint[:1])
    for part in ("train", "test", "all"):
        asked = {} if part == "train" else {"part": part}
        main(replace(one, **asked, batches=8))
        sizes[part] = document(settings)["samples_of_the_part"]
        assert f"list, {sizes[part]} videos of {part}\n" in capsys.readouterr().out

    assert sizes["train"] + sizes["test"] == sizes["all"] == 26


def test_it_takes_as_many_batches_as_asked_for(settings):
    main(replace(settings, batches=2))

    assert document(settings)["samples_of_the_part"] == 2 * 4


def test_scores_of_a_users_list_are_not_called_synthetic(settings):
    main(settings)

    assert document(settings)["opinion_scores"] == "human"


def test_another_data_set_may_be_named(settings, few_videos, capsys):
    root = few_videos["data_root"]

    main(replace(settings, dataset="mini-ugc", data_root=root, part="ood", batches=2))

    assert document(settings)["opinion_scores"] == "synthetic"
    assert "8 videos of ood, synthetic opinion scores" in capsys.readouterr().out


def test_a_part_that_is_not_there_is_an_error_that_names_those_that_are(settings):
    with pytest.raises(ValueError, match="part: expected one of train, test, all, got 'ood'"):
        main(replace(settings, part="ood"))


def test_the_checkpoint_of_another_script_is_built_and_fed_as_there(few_images, tmp_path):
    own = replace(
        sama_iqa.PRESETS["tiny"][1],
        **few_images,
        epochs=1,
        select_on="last",
        landscape_points=3,
        output=tmp_path,
    )
    results = json.loads(run_script(own, sama_iqa.task(own)).read_text("utf-8"))
    file = tmp_path / "split-0" / "best.pt"
    settings = Landscape((file,), output=tmp_path / "out", samples=2, landscape=WHERE)

    main(settings)

    (found,) = document(settings)["models"]
    assert found["curves"] == [results["splits"][0]["landscape"]["losses"]]


def test_models_that_would_be_called_alike_are_told_apart_by_file(settings, trained, tmp_path):
    copies = tuple(changed(trained[0][1], tmp_path / name / "0.pt") for name in "ab")

    main(replace(settings, checkpoint=copies))

    names = [found["name"] for found in document(settings)["models"]]
    assert names == [f"plain AdamW, seed 42 ({Path(name, '0.pt')})" for name in "ab"]


@pytest.mark.slow
def test_the_picture_grows_with_the_number_of_models(settings, trained, tmp_path):
    file = trained[0][1]
    many = tuple(changed(file, tmp_path / f"{seed}.pt", seed=seed) for seed in range(40))

    main(replace(settings, checkpoint=many))  # matplotlib would warn of lack of room

    assert (settings.output / "curves.png").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank_weight": 1.0}, "expected rank_weight 0.3 as in .*, got 1.0"),
        ({"batch": 8}, "expected batch 4 as in .*, got 8"),
        ({"script": "sama_vqa"}, "expected script fast_vqa as in .*, got sama_vqa"),
    ],
    ids=["rank weight", "batch", "script"],
)
def test_losses_that_do_not_compare_are_an_error_that_names_the_files(
    settings, trained, tmp_path, changes, message
):
    other = changed(trained[1][1], tmp_path / "other.pt", **changes)

    with pytest.raises(CheckpointError, match=rf"other\.pt: {message}"):
        main(replace(settings, checkpoint=(settings.checkpoint[0], other)))


def test_weights_of_another_model_are_an_error_that_names_the_file(settings, trained, tmp_path):
    own = load_checkpoint(trained[0][1])
    weights = {**own.state_dict, "space.0.weight": torch.zeros(16, 5, 4, 4)}
    save_checkpoint(tmp_path / "other.pt", replace(own, state_dict=weights))

    with pytest.raises(CheckpointError, match=r"other\.pt: "):
        main(replace(settings, checkpoint=(tmp_path / "other.pt",)))


@pytest.mark.parametrize("checkpoint", [(), (Path("a.pt"), Path("a.pt"))], ids=["none", "twice"])
def test_every_checkpoint_counts_once(checkpoint):
    with pytest.raises(ValueError, match="checkpoint: expected one or more, each once"):
        Landscape(checkpoint)


@IN_THIS_PROCESS_AND_ITS_OWN
def test_it_runs_from_the_command_line(settings, tmp_path, run):
    arguments = ["--checkpoint", *settings.checkpoint, "--batches", "1"]
    arguments += ["--output", tmp_path / "out", "--landscape.points", "3"]

    done = run(REPOSITORY / "examples" / "landscape.py", *arguments)

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "curves.png").exists()
