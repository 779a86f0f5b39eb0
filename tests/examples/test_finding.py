"""Which files a path leads to: itself, those in a folder, those on a list."""

import os

import pytest

from vqa.datasets import DatasetError
from vqa.scoring.finding import find_files, read_file_list


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Files of all sorts, of which only the names matter here."""
    monkeypatch.chdir(tmp_path)
    for name in ("b.mp4", "a.MKV", "photo.jpg", "labels.csv", "README", ".hidden.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.webm").touch()
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "d.mp4").touch()
    return tmp_path


def names(search, folder):
    return [str(found.path.relative_to(folder)) for found in search.files]


def test_a_folder_is_searched_with_all_below_it_and_what_is_passed_over_is_counted(folder):
    search = find_files([folder], "video")

    assert names(search, folder) == ["a.MKV", "b.mp4", "sub/c.webm"]
    assert search.passed_over == {"images": 1, ".csv": 1, "without ending": 1, "hidden": 2}


def test_a_model_for_images_gets_the_images(folder):
    search = find_files([folder], "image")

    assert names(search, folder) == ["photo.jpg"]
    assert search.passed_over["videos"] == 3


def test_what_is_named_is_tried_whatever_its_name(folder):
    asked = [folder / "README", folder / "photo.jpg", folder / ".hidden.mp4"]

    assert [found.path for found in find_files(asked, "video").files] == asked


def test_a_file_that_several_ways_lead_to_is_found_once(folder):
    ways = [folder / "b.mp4", folder, folder / "sub" / ".." / "b.mp4", folder / "b.mp4"]

    assert names(find_files(ways, "video"), folder) == ["b.mp4", "a.MKV", "sub/c.webm"]


def test_links_are_followed_but_not_in_a_circle(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "far.mp4").touch()
    (folder / "sub" / "back").symlink_to(folder, target_is_directory=True)
    (folder / "sub" / "far").symlink_to(elsewhere, target_is_directory=True)
    (folder / "self").symlink_to("self")

    search = find_files([folder], "video")

    assert names(search, folder) == ["a.MKV", "b.mp4", "sub/c.webm", "sub/far/far.mp4"]


def test_what_is_not_there_or_no_file_has_an_error(folder):
    (folder / "gone.mp4").symlink_to("nowhere.mp4")
    os.mkfifo(folder / "pipe.mp4")

    found = find_files([folder / "gone.mp4", folder / "pipe.mp4", folder / "x" / "y"], "video")

    errors = [file.error for file in found.files]
    assert errors == ["No such file or directory", "expected a file", "No such file or directory"]


@pytest.mark.parametrize(
    "text",
    [
        "b.mp4\nsub/c.webm\n",
        "b.mp4\r\n\r\nsub/c.webm",
        "b.mp4, -1, -1, 3.5\nsub/c.webm, 8, 30, 2\n",
        "name,mos\nb.mp4,3.5\nsub/c.webm,2\n",
        "mos;File name\n3,5;b.mp4\n2,1;sub\\c.webm\n",
        "3.5\tb.mp4\n2\tsub/c.webm\n",
        "path,score,error\nb.mp4,,broken\nsub/c.webm,2,\n",
        "\ufeffb.mp4\nsub/C.webm\n".replace("C.webm", "c.WEBM"),
    ],
    ids=["names", "windows", "four", "header", "semicolons", "pairs", "scores", "capitals"],
)
def test_a_list_is_any_table_of_names_with_or_without_scores(folder, text):
    (folder / "list.txt").write_text(text, encoding="utf-8", newline="")

    assert names(find_files([folder / "list.txt"], "video"), folder) == ["b.mp4", "sub/c.webm"]


def test_names_on_a_list_are_looked_for_beside_it_then_from_here(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "videos").mkdir()
    (elsewhere / "videos" / "b.mp4").touch()
    (elsewhere / "list.txt").write_text(f"b.mp4\na.MKV\n{folder / 'sub' / 'c.webm'}\n")

    found = [file.path.resolve() for file in find_files([elsewhere / "list.txt"], "video").files]

    assert found == [elsewhere / "videos" / "b.mp4", folder / "a.MKV", folder / "sub" / "c.webm"]


def test_a_name_with_a_comma_or_of_any_bytes_is_found_on_a_list_of_names(folder):
    (folder / "a, b.mp4").touch()
    odd = os.fsdecode(b"\xff.mp4")
    (folder / odd).touch()
    (folder / "list.txt").write_bytes(b"a, b.mp4\n\xff.mp4\nb.mp4\n")

    assert names(find_files([folder / "list.txt"], "video"), folder) == ["a, b.mp4", odd, "b.mp4"]


def test_a_listed_file_that_is_missing_names_the_row(folder):
    (folder / "list.csv").write_text("name\nb.mp4\ngone.mp4\n")

    there, gone = find_files([folder / "list.csv"], "video").files

    assert there.error is None
    assert gone.path == folder / "gone.mp4"
    assert gone.error == f"{folder / 'list.csv'}, row 3: No such file or directory"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\n \n", "the list is empty"), (b"a\0b", "binary data"), (b"name,mos\n", "is empty")],
)
def test_a_list_without_names_is_an_error_that_names_it(folder, content, message):
    (folder / "list.csv").write_bytes(content)

    with pytest.raises(DatasetError, match=rf"list\.csv: expected .*{message}"):
        find_files([folder / "list.csv"], "video")


def test_blanks_divide_a_list_only_where_no_file_has_them_in_its_name(tmp_path):
    for name in ("video 1.mp4", "clip 2", "clip", "a.mp4"):
        (tmp_path / name).touch()
    texts = {"names": "video 1.mp4\nclip 2\n", "scores": "a.mp4 3.5\nvideo 1.mp4 4\n"}
    texts["header"] = "name mos\na.mp4 3.5\n"
    texts["column"] = "path\na.mp4\n"
    expected = {"names": ["video 1.mp4", "clip 2"], "scores": ["a.mp4", "video 1.mp4"]}
    for title, text in texts.items():
        (tmp_path / f"{title}.txt").write_text(text)

        found = [file.path.name for file in read_file_list(tmp_path / f"{title}.txt")]

        assert found == expected.get(title, ["a.mp4"])


def test_names_on_a_list_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "a.mp4").touch()
    (tmp_path / "list.txt").write_text("~/a.mp4\n")

    assert [file.path for file in read_file_list(tmp_path / "list.txt")] == [
        tmp_path / "home" / "a.mp4"
    ]
