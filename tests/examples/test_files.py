"""Files are there completely or not at all."""

import json
import math

import numpy as np
import pytest
import torch
from full_disk import room_for

from vqa.features.cache import FeatureCache
from vqa.features.key_frames import TINY, Features
from vqa.io.files import replacing, write_json
from vqa.training.checkpoint import Checkpoint, save_checkpoint
from vqa.training.log import RunLog


def test_a_file_takes_its_place_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "file.txt"

    with replacing(path) as unfinished:
        unfinished.write_text("whole")
        assert not path.exists()

    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", ["x" * 255, "\u89c6" * 85, "\udce9.txt"], ids=ascii)
def test_any_name_that_a_file_can_have_will_do(tmp_path, name):
    with replacing(tmp_path / name) as unfinished:
        unfinished.write_text("whole")

    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_interrupted_writer_leaves_what_was_there(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as unfinished:
            unfinished.write_text("ha")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_has_null_for_what_is_no_number(tmp_path):
    write_json(tmp_path / "a.json", {"p": math.nan, "q": [1.0, (math.inf, "x")]})

    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"p": None, "q": [1.0, [None, "x"]]}


def write_text(path):
    write_json(path, {"text": "x" * 10_000})


def write_weights(path):
    weights = {"weight": torch.zeros(10_000)}
    save_checkpoint(path, Checkpoint("fast_vqa", {}, 1, weights))


def write_table(path):
    log = RunLog(path.parent, 0)
    try:
        log.epoch([{"epoch": n, "loss": 0.1 * n} for n in range(1000)], 1)
    finally:
        log.close()


def write_events(path):
    log = RunLog(path.parent, 0)
    try:
        for step in range(1000):
            log.step(step, 0.1, [0.1])
    finally:
        log.close()


def write_features(path):
    video = path.parent / "video"
    video.write_bytes(b"video")
    noise = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), np.uint8)
    cache = FeatureCache.create(path.parent / "features", TINY, "none")
    cache.write(video, Features(torch.from_numpy(noise), torch.zeros(2, 15)))


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_text, "file"),
        (write_weights, "file"),
        (write_table, "log.csv"),
        (write_events, "events.out.tfevents."),
        (write_features, "video-"),
    ],
)
def test_a_disk_without_room_is_an_error_that_names_the_file(tmp_path, capsys, write, name):
    with pytest.raises(OSError, match="File too large") as found, room_for(1000):
        write(tmp_path / "file")

    assert name in found.value.filename
    assert "tmp" in found.value.filename
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [p for p in written if name in p.name and "events" not in p.name], "half-written"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("write", [write_text, write_weights])
def test_a_folder_that_is_none_is_an_error_that_names_the_file(tmp_path, write):
    (tmp_path / "folder").write_text("a file")

    with pytest.raises(OSError, match="folder"):
        write(tmp_path / "folder" / "file")


def test_a_folder_that_vanishes_is_an_error_that_names_the_file(tmp_path):
    def write():
        with replacing(tmp_path / "folder" / "file") as unfinished:
            unfinished.write_text("whole")
            unfinished.unlink()
            unfinished.parent.rmdir()

    with pytest.raises(FileNotFoundError) as found:
        write()
    assert found.value.filename == str(tmp_path / "folder" / "file")


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    def write():
        with replacing(tmp_path / "file"):
            (tmp_path / "gone").read_text()

    with pytest.raises(FileNotFoundError, match="gone"):
        write()
