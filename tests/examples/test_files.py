"""Files are there completely or not at all."""

import json
import math

import pytest

from vqa.io.files import replacing, write_json


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
