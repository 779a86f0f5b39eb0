"""Checkpoints come back as they were written, or say which file is wrong and why."""

from dataclasses import fields, replace

import pytest
import torch

from vqa.demo import checkpoints
from vqa.demo.checkpoints import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    load_model,
    save_checkpoint,
)
from vqa.models import build_model
from vqa.sampling.tiny_fast_vqa import FragmentSampling


def checkpoint_of(model: torch.nn.Module) -> Checkpoint:
    return Checkpoint(
        model_name="tiny_fast_vqa",
        model_settings={"planes": 3, "width": 4},
        weights=model.state_dict(),
        sampling=FragmentSampling(grid=2, patch=8, frames=2, interval=1),
        rank_weight=0.3,
        method="awp",
        seed=7,
        gamma=0.01,
    )


@pytest.fixture
def model():
    return build_model("tiny_fast_vqa", planes=3, width=4)


@pytest.fixture
def file(model, tmp_path):
    save_checkpoint(tmp_path / "awp-7.pt", checkpoint_of(model))
    return tmp_path / "awp-7.pt"


def rewrite(file, **changes):
    torch.save({**torch.load(file, weights_only=True), **changes}, file)


def test_every_value_comes_back(model, file):
    written, read = checkpoint_of(model), load_checkpoint(file)

    for field in fields(Checkpoint):
        if field.name != "weights":
            assert getattr(read, field.name) == getattr(written, field.name)
    assert read.weights.keys() == written.weights.keys()
    assert all(read.weights[name].equal(weight) for name, weight in written.weights.items())


def test_the_model_is_built_again_for_evaluation(model, file):
    clips = torch.randn(2, 3, 2, 16, 16)

    again, _ = load_model(file)

    assert again(clips).equal(model(clips))
    assert not again.training


def test_whole_numbers_are_numbers_too(model, tmp_path):
    save_checkpoint(tmp_path / "a.pt", replace(checkpoint_of(model), gamma=0, rank_weight=1))

    assert load_checkpoint(tmp_path / "a.pt").rank_weight == 1.0


def test_a_tensor_takes_no_more_room_than_its_values(model, tmp_path):
    shared = torch.zeros(1_000_000)
    save_checkpoint(tmp_path / "a.pt", replace(checkpoint_of(model), weights={"a": shared[:10]}))

    assert (tmp_path / "a.pt").stat().st_size < 10_000


def test_an_interrupted_writer_leaves_the_old_file(model, file, monkeypatch):
    def interrupted(values, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(file, replace(checkpoint_of(model), seed=8))

    assert load_checkpoint(file).seed == 7
    assert list(file.parent.iterdir()) == [file]


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(CheckpointError, match=r"gone\.pt: expected a checkpoint, there is no such"):
        load_checkpoint(tmp_path / "gone.pt")


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.9], ids=["empty", "a tenth", "nine tenths"])
def test_a_damaged_file_is_an_error_that_names_it(file, kept):
    whole = file.read_bytes()
    file.write_bytes(whole[: int(kept * len(whole))])

    with pytest.raises(CheckpointError, match=r"awp-7\.pt: expected a checkpoint, cannot be read"):
        load_checkpoint(file)


@pytest.mark.parametrize("content", [{"weight": torch.zeros(1)}, [1, 2]], ids=["weights", "list"])
def test_a_checkpoint_of_something_else_is_an_error(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")

    with pytest.raises(CheckpointError, match=r"other\.pt: expected a checkpoint of the examples"):
        load_checkpoint(tmp_path / "other.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "expected version 1 of the format, got 99"),
        ({"seed": "seven"}, "expected 'seed' of type int, got 'seven'"),
        (
            {"method": "sgd"},
            "expected a method of plain, rwp, awp, awp-update, awp-previous, got 'sgd'",
        ),
        ({"sampling": {"stride": 3}}, "expected other settings in 'sampling'"),
    ],
    ids=["version", "type", "method", "sampling"],
)
def test_a_value_that_cannot_be_used_is_named(file, change, message):
    rewrite(file, **change)

    with pytest.raises(CheckpointError, match=rf"awp-7\.pt: {message}"):
        load_checkpoint(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_name": "large"}, "expected one of .*tiny_fast_vqa"),
        ({"model_settings": {"depth": 3}}, "unexpected keyword argument 'depth'"),
        ({"model_settings": {"planes": 3, "width": 8}}, "size mismatch"),
    ],
    ids=["name", "setting", "shapes"],
)
def test_a_model_that_cannot_be_built_is_an_error_that_names_the_file(file, change, message):
    rewrite(file, **change)

    with pytest.raises(CheckpointError, match=rf"(?s)awp-7\.pt: expected a model .*{message}"):
        load_model(file)
