"""Checkpoints come back as they were written, or say which file is wrong and why."""

from dataclasses import fields, replace

import pytest
import torch

from vqa.training import checkpoint as checkpoints
from vqa.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    Scale,
    load_checkpoint,
    save_checkpoint,
)


def checkpoint_of(weights: dict[str, torch.Tensor]) -> Checkpoint:
    settings = {"model": "tiny_fast_vqa", "seed": 7, "splits": (0,), "data_root": "data"}
    return Checkpoint("fast_vqa", settings, 3, weights, Scale(0.0, 1.0, 3.0, 0.5), {"version": 1})


@pytest.fixture
def file(tmp_path):
    save_checkpoint(tmp_path / "best.pt", checkpoint_of({"weight": torch.ones(3)}))
    return tmp_path / "best.pt"


def test_every_value_comes_back(file):
    written, read = checkpoint_of({"weight": torch.ones(3)}), load_checkpoint(file)

    for field in fields(Checkpoint):
        if field.name != "state_dict":
            assert getattr(read, field.name) == getattr(written, field.name)
    assert read.state_dict.keys() == {"weight"}
    assert read.state_dict["weight"].equal(torch.ones(3))


def test_an_interrupted_writer_leaves_the_old_file(file, monkeypatch):
    def interrupted(values, path):
        path.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(file, replace(checkpoint_of({}), epoch=8))

    assert load_checkpoint(file).epoch == 3
    assert list(file.parent.iterdir()) == [file]


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(CheckpointError, match=r"gone\.pt: expected a checkpoint, there is no file"):
        load_checkpoint(tmp_path / "gone.pt")


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.9], ids=["empty", "a tenth", "nine tenths"])
def test_a_damaged_file_is_an_error_that_names_it(file, kept):
    whole = file.read_bytes()
    file.write_bytes(whole[: int(kept * len(whole))])

    with pytest.raises(CheckpointError, match=r"best\.pt: expected a checkpoint, cannot be read"):
        load_checkpoint(file)


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ({"weight": torch.zeros(1)}, "something else"),
        ([1, 2], "something else"),
        (
            {"format": "torch-awp training run"},
            r"the state of a run, whose weights are in best\.pt",
        ),
        (
            {"format": "torch-awp examples", "version": 1, "model_name": "tiny_fast_vqa"},
            "one that the demo wrote before it trained as they do: run it again",
        ),
    ],
    ids=["weights", "list", "state", "demo"],
)
def test_something_else_is_an_error_that_says_what_it_is(tmp_path, content, got):
    torch.save(content, tmp_path / "other.pt")

    with pytest.raises(
        CheckpointError, match=f"other.pt: expected a checkpoint of a training script, got {got}"
    ):
        load_checkpoint(tmp_path / "other.pt")
