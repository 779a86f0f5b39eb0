"""Generated folders are complete or not there, and nobody's other files are touched."""

from pathlib import Path

import pytest

from vqa.synthetic.generated_folder import GeneratedFolder

FOLDER = GeneratedFolder("number", "record.json")
RECORD = {"version": 1, "settings": {"numbers": 3}}


def write_numbers(folder: Path) -> None:
    (folder / "numbers.txt").write_text("1 2 3")


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_holds_what_was_written_and_how_it_was_made(tmp_path):
    folder = tmp_path / "data" / "set"

    assert not FOLDER.is_complete(folder)
    assert FOLDER.build(folder, RECORD, write_numbers)
    assert FOLDER.is_complete(folder)
    assert files(folder) == ["numbers.txt", "record.json"]


def test_what_was_made_the_same_way_is_not_made_again(tmp_path):
    FOLDER.build(tmp_path / "set", RECORD, write_numbers)

    assert not FOLDER.build(tmp_path / "set", RECORD, lambda folder: pytest.fail("written again"))


def test_what_was_made_another_way_is_replaced(tmp_path):
    FOLDER.build(tmp_path / "set", RECORD, write_numbers)

    assert FOLDER.build(tmp_path / "set", {"version": 2}, lambda folder: None)
    assert files(tmp_path / "set") == ["record.json"]


@pytest.mark.parametrize("existing", [False, True])
def test_an_interruption_leaves_what_was_there(tmp_path, existing):
    def interrupted(folder: Path) -> None:
        write_numbers(folder)
        raise KeyboardInterrupt

    if existing:
        FOLDER.build(tmp_path / "set", RECORD, write_numbers)
    with pytest.raises(KeyboardInterrupt):
        FOLDER.build(tmp_path / "set", {"version": 2}, interrupted)

    assert files(tmp_path) == (["set"] if existing else [])
    assert FOLDER.is_complete(tmp_path / "set") == existing


def test_what_another_command_has_built_meanwhile_is_left_to_it(tmp_path):
    folder, read = tmp_path / "set", []

    def write(unfinished: Path) -> None:
        FOLDER.build(folder, RECORD, write_numbers)
        read.append((folder / "numbers.txt").stat().st_ino)
        write_numbers(unfinished)

    assert not FOLDER.build(folder, RECORD, write)
    assert [(folder / "numbers.txt").stat().st_ino] == read
    assert files(tmp_path) == ["set"]


def test_a_folder_with_other_files_is_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")

    with pytest.raises(ValueError, match="expected a number set or an empty folder"):
        FOLDER.build(tmp_path, RECORD, write_numbers)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
