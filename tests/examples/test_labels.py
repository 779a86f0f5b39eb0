"""Four-column label lists: what is read is what stands in them, and errors say where."""

from pathlib import Path

import pytest

from vqa.datasets import DatasetError
from vqa.datasets.tables import read_list


def list_with(folder: Path, text: str) -> Path:
    path = folder / "list.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_published_lists_with_or_without_spaces_are_read(tmp_path):
    path = list_with(tmp_path, "a.mp4,-1,-1,67.5\nb.mp4, 0.5, 24.0, 3\n")

    rows = read_list(path).rows

    assert list(map(tuple, rows.values())) == [
        ("a.mp4", "-1", "-1", "67.5"),
        ("b.mp4", "0.5", "24.0", "3"),
    ]


def test_a_byte_order_mark_is_no_part_of_the_first_path(tmp_path):
    path = list_with(tmp_path, "\ufeffa.mp4, -1, -1, 3\n")

    assert read_list(path).rows[1][0] == "a.mp4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4, 1, 24, 3\nb.mp4, 24, 3\n", "row 2: expected 'path, duration, fps, mos', got"),
        ("a.mp4, 1, 24, 3\n\nb.mp4, 1, 24, 3\n", "row 2: expected 'path, duration, fps, mos'"),
        (", 1, 24, 3\n", "row 1: expected 'path, duration, fps, mos'"),
        ("a.mp4, 1, 24, good\n", "row 1: expected a finite number in column 'mos', got 'good'"),
        ("a.mp4, 1, 24, nan\n", "row 1: expected a finite number in column 'mos', got 'nan'"),
        ("a.mp4, 1, 24, inf\n", "row 1: expected a finite number in column 'mos', got 'inf'"),
        (
            "a.mp4, long, 24, 3\n",
            "row 1: expected a finite number in column 'duration', got 'long'",
        ),
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
        read_list(path)

    assert str(error.value).startswith(str(path))
    assert message in str(error.value)


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\r\n\r\n", "\n  \n"])
def test_a_list_may_end_with_blank_lines(tmp_path, end):
    path = list_with(tmp_path, f"a.mp4, 1, 24, 3{end}")

    assert [cells[3] for cells in read_list(path).rows.values()] == ["3"]


@pytest.mark.parametrize("number", ["1_5", "\u0663", "1,5", "0x10"])
def test_only_digits_make_a_number(tmp_path, number):
    path = list_with(tmp_path, f"a.mp4, 1, 24, {number}\n")

    with pytest.raises(DatasetError, match="row 1: expected"):
        read_list(path)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00\x81"], ids=["no file", "not text"])
def test_a_list_that_cannot_be_read_is_an_error_that_names_it(tmp_path, content):
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(DatasetError, match=r"list\.txt: expected a readable UTF-8 label list"):
        read_list(path)
