"""Four-column label lists: what is read is what was written, and errors say where."""

from pathlib import Path

import pytest

from vqa.io.label_list import DatasetError, LabelledVideo, read_label_list, write_label_list


def list_with(folder: Path, text: str) -> Path:
    path = folder / "list.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_what_is_written_is_read_back(tmp_path):
    videos = [LabelledVideo("a.mp4", 0.5, 24.0, 3.1), LabelledVideo("b.mp4", -1.0, -1.0, 1 / 3)]
    path = list_with(tmp_path, "")

    write_label_list(path, videos)

    assert read_label_list(path) == videos


def test_published_lists_without_spaces_or_duration_are_read(tmp_path):
    path = list_with(tmp_path, "a.mp4,-1,-1,67.5\n")

    assert read_label_list(path) == [LabelledVideo("a.mp4", -1.0, -1.0, 67.5)]


def test_a_byte_order_mark_is_no_part_of_the_first_path(tmp_path):
    path = list_with(tmp_path, "\ufeffa.mp4, -1, -1, 3\n")

    assert read_label_list(path)[0].path == "a.mp4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4, 1, 24, 3\nb.mp4, 24, 3\n", "row 2: expected 'path, duration, fps, mos', got"),
        ("a.mp4, 1, 24, 3\n\nb.mp4, 1, 24, 3\n", "row 2: expected 'path, duration, fps, mos'"),
        (", 1, 24, 3\n", "row 1: expected 'path, duration, fps, mos'"),
        ("a.mp4, 1, 24, good\n", "row 1: expected a finite number, got 'good'"),
        ("a.mp4, 1, 24, nan\n", "row 1: expected a finite number, got 'nan'"),
        ("a.mp4, 1, 24, inf\n", "row 1: expected a finite number, got 'inf'"),
        ("a.mp4, long, 24, 3\n", "row 1: expected a finite number, got 'long'"),
        ("", "expected at least one row, the list is empty"),
    ],
    ids=[
        "columns",
        "blank",
        "no path",
        "word",
        "nan",
        "infinite",
        "duration",
        "empty",
    ],
)
def test_a_bad_row_is_an_error_that_says_where_and_what_was_expected(tmp_path, text, message):
    path = list_with(tmp_path, text)

    with pytest.raises(DatasetError) as error:
        read_label_list(path)

    assert str(error.value).startswith(str(path))
    assert message in str(error.value)


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\r\n\r\n", "\n  \n"])
def test_a_list_may_end_with_blank_lines(tmp_path, end):
    path = list_with(tmp_path, f"a.mp4, 1, 24, 3{end}")

    assert [video.score for video in read_label_list(path)] == [3.0]


@pytest.mark.parametrize("number", ["1_5", "\u0663", "1,5", "0x10"])
def test_only_digits_make_a_number(tmp_path, number):
    path = list_with(tmp_path, f"a.mp4, 1, 24, {number}\n")

    with pytest.raises(DatasetError, match="row 1: expected"):
        read_label_list(path)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00\x81"], ids=["no file", "not text"])
def test_a_list_that_cannot_be_read_is_an_error_that_names_it(tmp_path, content):
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(DatasetError, match=r"list\.txt: expected a readable UTF-8 label list"):
        read_label_list(path)
