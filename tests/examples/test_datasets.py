"""Every data set loads from the files its users have, and says clearly what is wrong with them."""

import csv
import os
import tempfile
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openpyxl import Workbook
from scipy.io import savemat

from vqa.datasets import SPECS, DataSet, DatasetError, Sample, load_dataset, summary
from vqa.synthetic.mini_ugc import MiniUgcSettings, build_mini_ugc


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def write_csv(path: Path, *rows: tuple[object, ...], encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows(rows)
    return path


def write_workbook(path: Path, **sheets: list[tuple[object, ...]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    workbook = Workbook()
    workbook.remove(workbook.active)
    for title, rows in sheets.items():
        sheet = workbook.create_sheet(title)
        for row in rows:
            sheet.append(row)
    workbook.save(path)
    return path


def found(dataset: DataSet, root: Path) -> list[tuple[str, float, str | None]]:
    return [(s.path.relative_to(root).as_posix(), s.score, s.part) for s in dataset.samples]


# LSVQ

LSVQ_HEADER = ("name", "p1", "height", "width", "mos_p1", "mos", "frame_number", "is_test")


def lsvq_row(name: str, mos: float, *is_test: bool) -> tuple[object, ...]:
    return (name, 0.1, 540, 960, 50.0, mos, 240, *is_test)


@pytest.fixture
def lsvq(tmp_path):
    write_csv(
        tmp_path / "labels_train_test.csv",
        LSVQ_HEADER,
        lsvq_row("yfcc-batch1/725", 61.5, False),
        lsvq_row("ia-batch2/clip.v2", 40.25, True),
        lsvq_row("yfcc-batch1/9", 12.0, False),
    )
    write_csv(tmp_path / "labels_test_1080p.csv", LSVQ_HEADER[:-1], lsvq_row("big/1", 70.0))
    touch(tmp_path, "yfcc-batch1/725.mp4", "ia-batch2/clip.v2.mp4", "yfcc-batch1/9.mp4")
    touch(tmp_path, "big/1.mp4")
    return tmp_path


def test_lsvq_official_csvs_give_three_parts(lsvq):
    dataset = load_dataset("lsvq", lsvq)

    assert found(dataset, lsvq) == [
        ("yfcc-batch1/725.mp4", 61.5, "train"),
        ("ia-batch2/clip.v2.mp4", 40.25, "test"),
        ("yfcc-batch1/9.mp4", 12.0, "train"),
        ("big/1.mp4", 70.0, "1080p"),
    ]
    assert dataset.kind == "video"
    assert dataset.source == lsvq / "labels_train_test.csv"
    assert not dataset.synthetic


@pytest.mark.parametrize(
    ("name", "scores"),
    [("lsvq-train", [61.5, 12.0]), ("lsvq-test", [40.25]), ("lsvq-1080p", [70.0])],
)
def test_a_part_of_lsvq_can_be_loaded_alone(lsvq, name, scores):
    dataset = load_dataset(name, lsvq)

    assert [sample.score for sample in dataset.samples] == scores
    assert {sample.part for sample in dataset.samples} == {name.removeprefix("lsvq-")}


def test_the_1080p_rows_are_taken_from_beside_a_given_lsvq_csv(lsvq, tmp_path_factory):
    labels = tmp_path_factory.mktemp("labels")
    for name in ("labels_train_test.csv", "labels_test_1080p.csv"):
        (lsvq / name).rename(labels / name)

    by_file = load_dataset("lsvq", lsvq, labels / "labels_train_test.csv")
    by_folder = load_dataset("lsvq", lsvq, labels)

    assert by_file.samples == by_folder.samples
    assert [sample.part for sample in by_file.samples] == ["train", "test", "train", "1080p"]


def test_lsvq_loads_from_the_lists_of_fast_vqa(tmp_path):
    for part, number in (("train", 1), ("test", 2), ("1080p", 3)):
        (tmp_path / f"labels_{part}.txt").write_text(f"a/{number}.mp4, -1, -1, {number}0.5\n")
        touch(tmp_path, f"a/{number}.mp4")

    assert found(load_dataset("lsvq", tmp_path), tmp_path) == [
        ("a/1.mp4", 10.5, "train"),
        ("a/2.mp4", 20.5, "test"),
        ("a/3.mp4", 30.5, "1080p"),
    ]


def test_lsvq_loads_from_the_csvs_of_simple_vqa_with_a_byte_order_mark(tmp_path):
    names = ("LSVQ_whole_train.csv", "LSVQ_whole_test.csv", "LSVQ_whole_test_1080p.csv")
    for number, name in enumerate(names):
        rows = [("name", "mos", "is_test"), (f"b/{number}", 50, number > 0)]
        write_csv(tmp_path / name, *rows, encoding="utf-8-sig")
        touch(tmp_path, f"b/{number}.mp4")

    dataset = load_dataset("lsvq", tmp_path)

    assert [sample.part for sample in dataset.samples] == ["train", "test", "1080p"]


def test_lsvq_rows_of_unknown_part_are_an_error_but_may_be_loaded_as_one(lsvq):
    path = write_csv(lsvq / "mine.csv", ("name", "mos"), ("yfcc-batch1/9", 5))

    with pytest.raises(DatasetError, match=r"mine\.csv, row 2: expected a column is_test or"):
        load_dataset("lsvq", lsvq, path)
    assert load_dataset("lsvq-test", lsvq, path).samples[0].part == "test"


def test_a_part_of_lsvq_without_rows_is_an_error(lsvq):
    with pytest.raises(DatasetError, match="expected rows of the part '1080p', found none"):
        load_dataset("lsvq-1080p", lsvq, lsvq / "labels_train_test.csv")


# KoNViD-1k, LIVE-VQC, YouTube-UGC


@pytest.mark.parametrize(
    "file",
    ["77.mp4", "77_original_centercrop_960x540_8s.mp4", "77_centercrop_960x540_8s.mp4"],
)
@pytest.mark.parametrize(
    ("annotations", "header", "name"),
    [
        ("KoNViD_1k_attributes.csv", ("file_name", "MOS"), "77.mp4"),
        ("KONVID_1K_metadata.csv", ("flickr_id", "mos"), "77"),
        ("labels.txt", None, "77.mp4, 8, 24, 3.5\n"),
        ("labels.csv", None, "77_original_centercrop_960x540_8s.mp4,-1,-1,3.5\n"),
    ],
)
def test_konvid_videos_are_found_under_every_name_they_were_released_with(
    tmp_path, file, annotations, header, name
):
    if header is None:
        (tmp_path / annotations).write_text(name)
    else:
        write_csv(tmp_path / annotations, header, (name, 3.5))
    touch(tmp_path, f"KoNViD_1k_videos/{file}")

    dataset = load_dataset("konvid-1k", tmp_path)

    assert found(dataset, tmp_path) == [(f"KoNViD_1k_videos/{file}", 3.5, None)]


def test_live_vqc_loads_from_its_matlab_file(tmp_path):
    videos = np.array([["A001.mp4"], ["B002.mp4"]], dtype=object)
    savemat(tmp_path / "data.mat", {"video_list": videos, "mos": np.array([[80.25], [6.5]])})
    touch(tmp_path, "Video/A001.mp4", "Video/B002.mp4")

    assert found(load_dataset("live-vqc", tmp_path), tmp_path) == [
        ("Video/A001.mp4", 80.25, None),
        ("Video/B002.mp4", 6.5, None),
    ]


def test_live_vqc_loads_from_the_list_of_fast_vqa(tmp_path):
    (tmp_path / "labels.txt").write_text("Video/A001.mp4,10.0,30.0,80.25\n")
    touch(tmp_path, "Video/A001.mp4")

    assert found(load_dataset("live-vqc", tmp_path), tmp_path) == [("Video/A001.mp4", 80.25, None)]


def test_a_matlab_file_without_scores_is_an_error_that_lists_its_variables(tmp_path):
    path = tmp_path / "data.mat"
    savemat(path, {"video_list": np.array([["a"]], dtype=object), "dmos": np.ones((1, 1))})

    with pytest.raises(DatasetError, match=r"data\.mat: expected the variable 'mos', found: "):
        load_dataset("live-vqc", tmp_path)


def test_a_matlab_file_with_a_score_too_few_is_an_error(tmp_path):
    videos = np.array([["a"], ["b"]], dtype=object)
    savemat(tmp_path / "data.mat", {"video_list": videos, "mos": np.ones((1, 1))})

    with pytest.raises(DatasetError, match="found 2 videos and 1 scores"):
        load_dataset("live-vqc", tmp_path)


YOUTUBE_NAME = "Sports_2160P-4e9f"
YOUTUBE_FILE = f"{YOUTUBE_NAME}_crf_10_ss_00_t_20.0.mp4"


def test_youtube_ugc_loads_from_the_sheet_of_its_workbook_that_has_the_scores(tmp_path):
    write_workbook(
        tmp_path / "original_videos_MOS_for_YouTube_UGC_dataset.xlsx",
        README=[("About",), ("Scores of original videos",)],
        MOS=[("vid", "category", "MOS full"), (YOUTUBE_NAME, "Sports", 3.25), (None, None, None)],
    )
    touch(tmp_path, YOUTUBE_FILE)

    assert found(load_dataset("youtube-ugc", tmp_path), tmp_path) == [(YOUTUBE_FILE, 3.25, None)]


def test_numbers_in_a_spreadsheet_can_be_names(tmp_path):
    path = write_workbook(tmp_path / "s.xlsx", MOS=[("vid", "mos"), (3339962845.0, 2), ("b", 3)])
    touch(tmp_path, "3339962845.mp4", "b.mp4")

    dataset = load_dataset("youtube-ugc", tmp_path, path)

    assert [sample.path.stem for sample in dataset.samples] == ["3339962845", "b"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("original_videos_MOS_for_YouTube_UGC_dataset.csv", f"vid,MOS full\n{YOUTUBE_NAME},3.25\n"),
        ("mylabels.txt", f"{YOUTUBE_FILE}, 20, 30, 3.25\n"),
        ("labels.txt", f"{YOUTUBE_FILE},-1,-1,3.25\n"),
    ],
)
def test_youtube_ugc_loads_from_csv_and_from_both_published_lists(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    touch(tmp_path, YOUTUBE_FILE)

    assert found(load_dataset("youtube-ugc", tmp_path), tmp_path) == [(YOUTUBE_FILE, 3.25, None)]


# KonIQ-10k, SPAQ, BIQ2021

KONIQ_SCORES = "koniq10k_scores_and_distributions.csv"
KONIQ_SETS = "koniq10k_distributions_sets.csv"


@pytest.fixture
def koniq(tmp_path):
    header = ("image_name", "c1", "c_total", "MOS", "SD", "MOS_zscore")
    rows = [("1.jpg", 0, 105, 3.5, 0.4, 63.7), ("2.jpg", 1, 108, 2.5, 0.5, 40.1)]
    write_csv(tmp_path / KONIQ_SCORES, header, *rows, ("3.jpg", 1, 99, 1.5, 0.5, 20.2))
    sets = [("2.jpg", 41.0, "validation"), ("1.jpg", 64.0, "training"), ("3.jpg", 21.0, "test")]
    write_csv(tmp_path / KONIQ_SETS, ("name", "mos", "set"), *sets)
    touch(tmp_path, "1024x768/1.jpg", "1024x768/2.jpg", "1024x768/3.jpg")
    return tmp_path


def test_koniq_scores_come_from_one_file_and_the_official_split_from_the_other(koniq):
    assert found(load_dataset("koniq-10k", koniq), koniq) == [
        ("1024x768/1.jpg", 63.7, "train"),
        ("1024x768/2.jpg", 40.1, "validation"),
        ("1024x768/3.jpg", 20.2, "test"),
    ]


def test_koniq_has_two_score_columns(koniq):
    dataset = load_dataset("koniq-10k", koniq, score_column="MOS")

    assert [sample.score for sample in dataset.samples] == [3.5, 2.5, 1.5]


def test_koniq_loads_from_either_file_alone(koniq):
    scores = load_dataset("koniq-10k", koniq, koniq / KONIQ_SCORES)
    sets = load_dataset("koniq-10k", koniq, koniq / KONIQ_SETS)
    (koniq / KONIQ_SETS).unlink()
    without_parts = load_dataset("koniq-10k", koniq)

    assert [sample.part for sample in scores.samples] == ["train", "validation", "test"]
    assert next((s.score, s.part) for s in sets.samples) == (41.0, "validation")
    assert {sample.part for sample in without_parts.samples} == {None}


def test_an_image_that_is_in_no_official_part_is_an_error(koniq):
    write_csv(koniq / KONIQ_SETS, ("name", "set"), ("1.jpg", "training"))

    with pytest.raises(
        DatasetError, match=rf"{KONIQ_SCORES}, row 3: expected 2\.jpg in .*{KONIQ_SETS}"
    ):
        load_dataset("koniq-10k", koniq)


def test_spaq_loads_from_its_spreadsheet(tmp_path):
    write_workbook(
        tmp_path / "Annotations" / "MOS and Image attribute scores.xlsx",
        Sheet1=[("Image name", "MOS", "Brightness"), ("00001.jpg", 36.69, 49), ("2.jpg", 8, 1)],
    )
    touch(tmp_path, "TestImage/00001.jpg", "TestImage/2.jpg")

    assert found(load_dataset("spaq", tmp_path), tmp_path) == [
        ("TestImage/00001.jpg", 36.69, None),
        ("TestImage/2.jpg", 8.0, None),
    ]


BIQ_TRAIN, BIQ_TEST = "Train (Images and MOS).csv", "Test (Images and MOS).csv"


def test_biq2021_loads_from_two_csvs_whatever_the_case_of_an_extension(tmp_path):
    write_csv(tmp_path / BIQ_TRAIN, ("Image Name", "MOS"), ("ss01 (1).jpg", 0.5))
    write_csv(tmp_path / BIQ_TEST, ("Image Name", "MOS"), ("ss02_7.JPG", 0.25))
    touch(tmp_path, "Images/ss01 (1).jpg", "Images/ss02_7.jpg")

    assert found(load_dataset("biq2021", tmp_path), tmp_path) == [
        ("Images/ss01 (1).jpg", 0.5, "train"),
        ("Images/ss02_7.jpg", 0.25, "test"),
    ]


def test_a_given_csv_of_biq2021_is_enough_to_find_the_other(tmp_path):
    write_csv(tmp_path / BIQ_TRAIN, ("Image Name", "MOS"), ("a.jpg", 0.5))
    test = write_csv(tmp_path / BIQ_TEST, ("Image Name", "MOS"), ("b.jpg", 0.25))
    touch(tmp_path, "Images/a.jpg", "Images/b.jpg")

    assert [s.part for s in load_dataset("biq2021", tmp_path, test).samples] == ["train", "test"]
    (tmp_path / BIQ_TRAIN).unlink()
    assert [s.part for s in load_dataset("biq2021", tmp_path, test).samples] == ["test"]


def test_biq2021_loads_from_one_csv_with_a_split_column(tmp_path):
    header = ("image_name", "mos", "split")
    write_csv(tmp_path / "labels.csv", header, ("a.jpg", 0.5, "train"), ("b.jpg", 0.25, "test"))
    touch(tmp_path, "images/a.jpg", "images/b.jpg")

    assert found(load_dataset("biq2021", tmp_path), tmp_path) == [
        ("images/a.jpg", 0.5, "train"),
        ("images/b.jpg", 0.25, "test"),
    ]


def test_an_exact_file_name_comes_before_one_in_another_case(tmp_path):
    write_csv(tmp_path / "labels.csv", ("image", "mos"), ("a.JPG", 1), ("a.jpg", 2))
    touch(tmp_path, "a.JPG", "a.jpg")

    assert [s.path.name for s in load_dataset("csv", tmp_path).samples] == ["a.JPG", "a.jpg"]


# Any data, and the generated sets


def test_a_list_of_videos_or_of_images_loads_and_tells_its_kind(tmp_path):
    (tmp_path / "labels.txt").write_text("clips/a.mp4, 8, 24, 3.5\n")
    images = tmp_path / "images.txt"
    images.write_text("b.PNG, -1, -1, 2\n")
    touch(tmp_path, "clips/a.mp4", "b.PNG")

    assert load_dataset("list", tmp_path).kind == "video"
    assert load_dataset("list", tmp_path, images).kind == "image"


def test_two_lists_are_two_parts(tmp_path):
    (tmp_path / "labels_train.txt").write_text("a.mp4, 8, 24, 3.5\n")
    (tmp_path / "labels_test.txt").write_text("b.mp4, 8, 24, 2.5\n")
    touch(tmp_path, "a.mp4", "b.mp4")

    assert found(load_dataset("list", tmp_path), tmp_path) == [
        ("a.mp4", 3.5, "train"),
        ("b.mp4", 2.5, "test"),
    ]


@pytest.mark.parametrize(
    ("header", "row"),
    [
        (("image_name", "mos"), ("a.png", 3.5)),
        (("Score", "Name"), (3.5, "a.png")),
        (("photo", "comment", "MOS"), ("a.png", "nice", 3.5)),
        (("image_name", "MOS_zscore"), ("a.png", 3.5)),
    ],
)
def test_a_csv_of_images_needs_a_column_of_names_and_one_of_scores(tmp_path, header, row):
    path = write_csv(tmp_path / "anything.csv", header, row)
    touch(tmp_path, "images/a.png")

    assert found(load_dataset("csv", tmp_path, path), tmp_path) == [("images/a.png", 3.5, None)]


ROWS = [("a, b.mp4", 3.5, "train"), ("c.mp4", 2.0, "test"), ("d.mp4", -1e-2, "train")]


def write_table(
    path: Path, header: bool, separator: str, decimal: str = ".", end: str = ""
) -> Path:
    rows = [(name, str(score).replace(".", decimal), part) for name, score, part in ROWS]
    with path.open("w", newline="") as file:
        table = csv.writer(file, delimiter=separator)
        table.writerows([("Video", "MOS", "split"), *rows] if header else [row[:2] for row in rows])
        file.write(end)
    touch(path.parent, *(f"videos/{name}" for name, _, _ in ROWS))
    return path


@pytest.mark.parametrize("end", ["", "\n", "\r\n\r\n"])
@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize(
    ("separator", "decimal"), [(",", "."), ("\t", "."), (";", "."), (";", ",")]
)
def test_a_table_of_videos_loads_whatever_separates_its_cells(
    tmp_path, header, separator, decimal, end
):
    path = write_table(tmp_path / "my scores.txt", header, separator, decimal, end)

    dataset = load_dataset("csv", tmp_path, path)

    assert dataset.kind == "video"
    assert found(dataset, tmp_path) == [
        (f"videos/{name}", score, part if header else None) for name, score, part in ROWS
    ]
    assert summary(dataset).startswith("csv: 3 videos, ")


def videos(tmp_path, *rows, name="labels.csv"):
    """Four videos and a table of these rows."""
    touch(tmp_path, *(f"{letter}.mp4" for letter in "abcd"))
    write_csv(tmp_path / name, *rows)
    return tmp_path


def test_an_unknown_score_of_a_list_is_left_out_and_counted(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    rows = "a.mp4, -1, -1, 3.5\nb.mp4, -1, -1, -1\nc.mp4, 8, 24, -1.0\n"
    (tmp_path / "labels.txt").write_text(rows)

    for dataset in ("list", "csv", "konvid-1k"):
        loaded = load_dataset(dataset, tmp_path, tmp_path / "labels.txt")

        assert found(loaded, tmp_path) == [("a.mp4", 3.5, None)]
        assert "2 listed files have no score (-1) and are left out" in summary(loaded)


def test_a_list_of_unknown_scores_alone_is_refused(tmp_path):
    touch(tmp_path, "a.mp4")
    (tmp_path / "labels.txt").write_text("a.mp4, -1, -1, -1\n")

    with pytest.raises(DatasetError, match=r"labels\.txt: expected scores, .* unknown \(-1\)"):
        load_dataset("list", tmp_path)


def test_a_score_of_minus_one_in_another_table_is_a_score(tmp_path):
    loaded = load_dataset("csv", videos(tmp_path, ("name", "mos"), ("a.mp4", -1), ("b.mp4", 0.5)))

    assert [sample.score for sample in loaded.samples] == [-1, 0.5]


@pytest.mark.parametrize(
    ("column", "cells", "parts"),
    [
        ("is_test", ("False", "True", "false", "1"), ("train", "test", "train", "test")),
        ("is_test", ("0.0", "1.0", "no", "yes"), ("train", "test", "train", "test")),
        ("Is Train", ("1", "0", "1", "0"), ("train", "test", "train", "test")),
        ("set", ("training", "val", "test", "test"), ("train", "validation", "test", "test")),
    ],
)
def test_every_table_knows_every_column_of_parts(tmp_path, column, cells, parts):
    rows = [(f"{letter}.mp4", 3, cell) for letter, cell in zip("abcd", cells, strict=True)]
    folder = videos(tmp_path, ("name", "mos", column), *rows)

    for dataset in ("csv", "konvid-1k", "live-vqc"):
        loaded = load_dataset(dataset, folder, folder / "labels.csv")
        assert tuple(sample.part for sample in loaded.samples) == parts


def test_two_columns_of_parts_may_complete_but_not_contradict_each_other(tmp_path):
    header = ("name", "mos", "is_test", "split")
    rows = [("a.mp4", 1, 0, "train"), ("b.mp4", 2, 0, "val"), ("c.mp4", 3, 1, "test")]
    folder = videos(tmp_path, header, *rows)
    assert [s.part for s in load_dataset("csv", folder).samples] == ["train", "validation", "test"]

    videos(tmp_path, header, *rows, ("d.mp4", 4, 1, "train"))
    with pytest.raises(DatasetError, match=r"row 5: expected one part .*'1' in column 'is_test'"):
        load_dataset("csv", folder)


@pytest.mark.parametrize(
    "column", ["video_path", "filepath", "filename", "File Path", "img_path", "clip"]
)
def test_names_are_found_beside_an_index_of_the_rows(tmp_path, column):
    folder = videos(tmp_path, ("", column, "mos"), (0, "a.mp4", 3.5), (1, "b.mp4", 4))

    assert found(load_dataset("csv", folder), tmp_path) == [
        ("a.mp4", 3.5, None),
        ("b.mp4", 4.0, None),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "a.mp4 3.5\nmy own b.mp4 4\n",
        "3.5 a.mp4\n4   my own b.mp4\n",
        "name mos\na.mp4 3.5\nmy own b.mp4  4\n",
        "a.mp4 -1 -1 3.5\n" + "b.mp4 -1 -1 4\nc.mp4 8 24 -1\n",
        "id name mos\n0 a.mp4 3.5\n1 b.mp4 4\n",
    ],
    ids=["name score", "score name", "header", "four columns", "three columns"],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_blanks_divide_cells_where_nothing_else_does(tmp_path, text, end):
    second = "my own b.mp4" if "own" in text else "b.mp4"
    touch(tmp_path, "a.mp4", second, "c.mp4")
    (tmp_path / "labels.txt").write_bytes(text.replace("\n", end).encode())

    loaded = load_dataset("csv", tmp_path)

    assert found(loaded, tmp_path) == [("a.mp4", 3.5, None), (second, 4.0, None)]


def test_what_divides_cells_is_said_where_no_columns_are_found(tmp_path):
    touch(tmp_path, "a.mp4")
    (tmp_path / "labels.txt").write_text("name|mos\na.mp4|3.5\n")

    with pytest.raises(DatasetError, match="divided by commas, tabs, semicolons or blanks"):
        load_dataset("csv", tmp_path)
    with pytest.raises(DatasetError, match="cells are divided by commas;"):
        load_dataset("list", tmp_path)


@pytest.mark.parametrize("column", ["rater *", "Anna,ben,rater3", "rater_1,rater 2,rater3"])
def test_several_raters_count_by_their_mean_as_far_as_they_rated(tmp_path, column):
    header = ("name", "rater 1", "rater 2", "Rater_3", "mos")
    if "ben" in column:
        header = ("name", "anna", "Ben", "Rater 3", "mos")
    rows = ("a.mp4", 1, 2, 6, 9), ("b.mp4", "", 4, 5, 9), ("c.mp4", "", "", 2, 9)
    folder = videos(tmp_path, header, *rows)

    loaded = load_dataset("csv", folder, score_column=column)

    assert [sample.score for sample in loaded.samples] == [3.0, 4.5, 2.0]


def test_a_rater_that_is_no_column_or_a_row_without_rating_is_an_error(tmp_path):
    folder = videos(tmp_path, ("name", "r1", "r2"), ("a.mp4", 1, 2), ("b.mp4", "", ""))

    with pytest.raises(DatasetError, match=r"scores \(r1,r3\), found the columns: name, r1, r2"):
        load_dataset("csv", folder, score_column="r1,r3")
    with pytest.raises(DatasetError, match="row 3: expected a value in column 'r1'"):
        load_dataset("csv", folder, score_column="r*")


def test_names_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    touch(tmp_path, "own/a.mp4")
    folder = videos(tmp_path / "data", ("name", "mos"), ("~/own/a.mp4", 3))

    (sample,) = load_dataset("csv", folder).samples
    assert sample.path == tmp_path / "own" / "a.mp4"


def test_predicted_scores_are_no_opinion_scores(tmp_path):
    (tmp_path / "a.mp4").touch()
    write_csv(tmp_path / "scores.csv", ("path", "score", "error"), ("a.mp4", 3.5, ""))

    with pytest.raises(DatasetError, match=r"scores\.csv: expected opinion scores, found those"):
        load_dataset("csv", tmp_path)


@pytest.mark.parametrize("name", ["labels.csv", "labels.tsv", "scores.tsv"])
def test_a_table_is_found_under_its_usual_names(tmp_path, name):
    write_table(tmp_path / name, True, "\t" if name.endswith("tsv") else ",")

    assert load_dataset("csv", tmp_path).source == tmp_path / name


def test_scores_may_come_before_names_without_a_header(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("3.5,a.png\n2,b.png\n")
    touch(tmp_path, "a.png", "b.png")

    assert found(load_dataset("csv", tmp_path), tmp_path) == [
        ("a.png", 3.5, None),
        ("b.png", 2.0, None),
    ]


def test_a_bad_score_is_an_error_that_names_its_row_without_a_header_too(tmp_path):
    (tmp_path / "labels.csv").write_text("a.png;3,5\nb.png;good\n")
    touch(tmp_path, "a.png", "b.png")

    with pytest.raises(DatasetError, match=r"row 2: expected a finite number .*, got 'good'"):
        load_dataset("csv", tmp_path)


@pytest.mark.parametrize("number", ["1_5", "\u0663", "1,5", "1,000.5"])
def test_only_digits_make_a_score(tmp_path, number):
    write_csv(tmp_path / "labels.csv", ("image_name", "mos"), ("a.png", number))
    touch(tmp_path, "a.png")

    with pytest.raises(DatasetError, match="row 2: expected a finite number in column 'mos', got"):
        load_dataset("csv", tmp_path)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("a.gif", "b.avif"), "image"),
        (("a.heic", "b.JP2", "c.jfif"), "image"),
        (("a.mp4", "b.webm"), "video"),
        (("a.mp4", "b.gif"), "video"),
        (("a", "b.y4m"), "video"),
    ],
)
@pytest.mark.parametrize("dataset", ["list", "csv"])
def test_a_set_is_called_what_its_files_are(tmp_path, names, kind, dataset):
    rows = "".join(f"{name}, -1, -1, {score}\n" for score, name in enumerate(names))
    (tmp_path / "mine.txt").write_text(rows)
    touch(tmp_path, *names)

    loaded = load_dataset(dataset, tmp_path, tmp_path / "mine.txt")

    assert loaded.kind == kind
    assert f"{len(names)} {kind}s" in summary(loaded)


@pytest.mark.parametrize(("listed", "there"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_in_another_unicode_form_is_missing_and_says_so(tmp_path, listed, there):
    name = "caf\u00e9.png"
    write_csv(tmp_path / "labels.csv", ("name", "mos"), (normalize(listed, name), 3))
    touch(tmp_path, f"images/{normalize(there, name)}")

    with pytest.raises(DatasetError, match=r"row 2\); a file is there .* only in its Unicode form"):
        load_dataset("csv", tmp_path)


def test_mini_ugc_is_built_only_if_it_is_not_there(tmp_path):
    settings = MiniUgcSettings(
        frames=2, height=48, width=64, photographs=1, train_clips=1, test_clips=1
    )
    build_mini_ugc(tmp_path / "set", settings)

    dataset = load_dataset("mini-ugc", tmp_path / "set")

    assert [sample.part for sample in dataset.samples] == ["train", "test", "ood"]
    assert dataset.synthetic


FILE_NAMES = st.text(
    st.characters(exclude_categories=["C", "Z"], exclude_characters="/\\\ufeff"), min_size=1
).map(lambda name: f"{name[:40]}.png")


@given(st.dictionaries(FILE_NAMES, st.floats(-1e6, 1e6), min_size=1, max_size=5))
def test_whatever_a_csv_can_hold_is_read_back(scores):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_csv(root / "labels.csv", ("image_name", "mos"), *scores.items())
        touch(root, *(f"images/{name}" for name in scores))

        dataset = load_dataset("csv", root)

    assert {sample.path.name: sample.score for sample in dataset.samples} == scores


# What is wrong


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            ("a.png", "good", "train"),
            r"row 3: expected a finite number in column 'MOS', got 'good'",
        ),
        (("a.png", "nan", "train"), r"row 3: expected a finite number in column 'MOS', got 'nan'"),
        (("a.png", "", "train"), r"row 3: expected a value in column 'MOS'"),
        (("", "1", "train"), r"row 3: expected a value in column 'Name'"),
        (("a.png", "1", "most"), r"row 3: expected a part .* in column 'split' .*, got 'most'"),
        (("a.png", "1"), r"row 3: expected 3 cells like the header, got 2"),
        (("ok.png", "1", "test"), r"row 3: expected every file once, .* is in .*row 2 too"),
    ],
    ids=["word", "nan", "no score", "no name", "part", "cells", "twice"],
)
def test_a_bad_row_is_an_error_that_names_file_and_row(tmp_path, row, message):
    write_csv(tmp_path / "labels.csv", ("Name", "MOS", "split"), ("ok.png", "2", "train"), row)
    touch(tmp_path, "a.png", "ok.png")

    with pytest.raises(DatasetError, match=message) as error:
        load_dataset("csv", tmp_path)
    assert str(error.value).startswith(str(tmp_path / "labels.csv"))


def test_a_list_is_a_list_even_if_its_first_row_is_bad(tmp_path):
    (tmp_path / "labels.txt").write_text("a.mp4, 1, 24, good\n")

    with pytest.raises(
        DatasetError, match=r"row 1: expected a finite number in column 'mos', got 'good'"
    ):
        load_dataset("list", tmp_path)


def test_a_bad_row_of_a_list_or_of_a_sheet_is_named_too(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("a.mp4, 1, 24, 3\nb.mp4, 1, 24\n")
    sheet = write_workbook(tmp_path / "s.xlsx", Scores=[("vid", "MOS full"), ("a", 1), ("b", "x")])

    with pytest.raises(DatasetError, match=r"labels\.txt, row 2: expected 'path, duration, fps"):
        load_dataset("list", tmp_path)
    with pytest.raises(DatasetError, match=r"s\.xlsx, sheet Scores, row 3: .*'MOS full', got 'x'"):
        load_dataset("youtube-ugc", tmp_path, sheet)


def test_the_column_of_scores_is_none_of_names(tmp_path):
    write_csv(tmp_path / "labels.csv", ("mos", "photo"), (3.5, "a.png"))

    with pytest.raises(DatasetError, match=r"expected a column of file names .*: mos, photo"):
        load_dataset("csv", tmp_path)


def test_a_file_without_the_needed_columns_is_an_error_that_lists_those_it_has(tmp_path):
    path = write_csv(tmp_path / "x.csv", ("Photo", "Sharpness"), ("a", 1))

    with pytest.raises(DatasetError, match=r"x\.csv: .*found the columns: Photo, Sharpness"):
        load_dataset("spaq", tmp_path, path)
    with pytest.raises(DatasetError, match=r"one of scores \(beauty\), found the columns: Photo"):
        load_dataset("csv", tmp_path, path, score_column="beauty")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a header and at least one row"),
        (b"image_name,mos\n", "expected a header and at least one row"),
        (b"\xff\xfe\x00", "expected a UTF-8 text, an .xlsx or a MATLAB file"),
        (b"PK\x03\x04broken", "expected an .xlsx spreadsheet"),
        (b"MATLAB 7.3 MAT-file" + bytes(200), "expected a MATLAB file up to version 7"),
    ],
    ids=["empty", "header only", "not text", "not a workbook", "matlab 7.3"],
)
def test_an_annotation_file_that_cannot_be_read_is_an_error_that_names_it(
    tmp_path, content, message
):
    path = tmp_path / "labels.csv"
    path.write_bytes(content)

    with pytest.raises(DatasetError, match=message) as error:
        load_dataset("csv", tmp_path)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("data.mat", lambda file: file[: len(file) // 2]),
        ("scores.xlsx", lambda file: file[: len(file) // 2]),
        ("scores.xlsx", lambda file: file[:600] + bytes(30) + file[630:]),
    ],
    ids=["matlab", "workbook", "hole in a workbook"],
)
def test_an_annotation_file_that_was_damaged_is_an_error_that_names_it(tmp_path, name, damage):
    path = tmp_path / name
    if name == "data.mat":
        videos = np.array([[f"A{number:03d}.mp4"] for number in range(99)], dtype=object)
        savemat(path, {"video_list": videos, "mos": np.ones((99, 1))}, do_compression=True)
    else:
        write_workbook(path, MOS=[("vid", "mos"), *((str(number), number) for number in range(99))])
    path.write_bytes(damage(path.read_bytes()))

    with pytest.raises(DatasetError, match=name):
        load_dataset("live-vqc", tmp_path, path)


def test_a_missing_annotation_file_is_an_error_that_lists_the_names_tried(tmp_path):
    with pytest.raises(DatasetError) as error:
        load_dataset("konvid-1k", tmp_path)

    for name in ("KoNViD_1k_attributes.csv", "KONVID_1K_metadata.csv", "labels.txt"):
        assert name in str(error.value)


@pytest.mark.parametrize("annotations", [None, "labels.txt"])
def test_a_missing_folder_or_given_file_is_an_error_that_names_it(tmp_path, annotations):
    root = tmp_path if annotations else tmp_path / "nowhere"
    given = tmp_path / annotations if annotations else None

    with pytest.raises(DatasetError, match="nowhere" if given is None else r"labels\.txt"):
        load_dataset("live-vqc", root, given)


@pytest.fixture
def incomplete(tmp_path):
    lines = [f"{number:02d}.mp4, -1, -1, {number}\n" for number in range(15)]
    (tmp_path / "labels.txt").write_text("".join(lines))
    touch(tmp_path, "00.mp4", "07.mp4")
    return tmp_path


def test_all_missing_files_are_counted_and_the_first_ten_named(incomplete):
    with pytest.raises(DatasetError) as error:
        load_dataset("live-vqc", incomplete)

    lines = str(error.value).splitlines()
    assert "13 of 15 listed files are missing" in lines[0]
    assert "01.mp4 or 01.mp4.mp4 or Video/01.mp4" in lines[0]
    assert [line.split()[0] for line in lines[1:11]] == [
        f"{number:02d}.mp4" for number in (*range(1, 7), *range(8, 12))
    ]
    assert "row 2)" in lines[1]
    assert lines[11].strip() == "and 3 more"


def test_missing_files_can_be_left_out_and_are_counted(incomplete):
    dataset = load_dataset("live-vqc", incomplete, drop_missing=True)

    assert [sample.score for sample in dataset.samples] == [0, 7]
    assert dataset.dropped == 13
    assert "13 listed files are missing and left out" in summary(dataset)


def test_a_data_set_without_any_file_is_an_error_even_if_files_may_be_missing(incomplete):
    for name in ("00.mp4", "07.mp4"):
        (incomplete / name).unlink()

    with pytest.raises(DatasetError, match="15 of 15 listed files are missing"):
        load_dataset("live-vqc", incomplete, drop_missing=True)


def test_an_unknown_name_is_an_error_that_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"expected one of lsvq, .*csv, got 'imagenet'"):
        load_dataset("imagenet", tmp_path)


def test_a_folder_is_listed_once_and_no_file_is_asked_for_alone(lsvq, monkeypatch):
    listed: list[Path] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: listed.append(folder) or scandir(folder))

    load_dataset("lsvq", lsvq)

    assert len(listed) == len(set(listed))


# The summary


def samples_of(part: str | None, count: int, low: float, high: float) -> tuple[Sample, ...]:
    scores = np.linspace(low, high, count)
    return tuple(
        Sample(Path(f"{part}{number}.mp4"), float(score), part)
        for number, score in enumerate(scores)
    )


def summary_of(name: str, *samples: Sample) -> list[str]:
    return summary(DataSet(name, SPECS[name].kind or "video", samples, Path("labels"))).splitlines()


def test_a_summary_says_where_a_data_set_is_as_expected():
    lines = summary_of("konvid-1k", *samples_of(None, 1200, 1.22, 4.64))

    assert lines[0] == "konvid-1k: 1200 videos, labels"
    assert lines[1].split() == ["all", "1200", "MOS", "1.22", "..", "4.64", "as", "expected"]


@pytest.mark.parametrize(
    ("count", "low", "high"), [(1199, 1.22, 4.64), (1200, 1.5, 4.64), (1200, 1.22, 46.4)]
)
def test_a_summary_marks_another_count_or_range(count, low, high):
    lines = summary_of("konvid-1k", *samples_of(None, count, low, high))

    assert lines[1].endswith("DIFFERS: expected 1200 with MOS 1.22 .. 4.64")


def test_a_summary_looks_at_every_part_and_misses_absent_ones():
    lines = summary_of(
        "lsvq", *samples_of("train", 28056, 2.45, 90.52), *samples_of("test", 7182, 8.5, 91)
    )

    assert lines[1].endswith("as expected")
    assert lines[2].endswith("as expected (SAMA)")
    assert lines[3].split()[:3] == ["1080p", "0", "DIFFERS:"]


@pytest.mark.parametrize(
    ("count", "low", "high", "note"),
    [
        (1147, 1.24, 4.68, "FAST-VQA's list"),
        (1195, 1.0, 9.5, "mylabels"),
        (1040, 1.2, 4.6, "paper"),
    ],
)
def test_a_summary_tells_the_three_lists_of_youtube_ugc_apart(count, low, high, note):
    line = summary_of("youtube-ugc", *samples_of(None, count, low, high))[1]

    assert "as expected" in line
    assert note in line


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.8, 96.1, "as expected"),
        (1.8, 101.0, "DIFFERS: expected 11125 on the scale 0 .. 100"),
        (-1.0, 96.1, "DIFFERS: expected 11125 on the scale 0 .. 100"),
    ],
)
def test_scores_may_lie_anywhere_on_a_reference_scale_but_not_beside_it(low, high, verdict):
    assert summary_of("spaq", *samples_of(None, 11125, low, high))[1].endswith(verdict)


def test_a_summary_misses_parts_that_no_sample_says():
    lines = summary_of("biq2021", *samples_of(None, 12000, 0, 1))

    assert lines[1].split() == ["all", "12000", "MOS", "0", "..", "1"]
    assert [line.split()[:3] for line in lines[2:]] == [
        ["train", "0", "DIFFERS:"],
        ["test", "0", "DIFFERS:"],
    ]


def test_a_data_set_without_a_reference_is_only_described():
    lines = summary_of("list", *samples_of("test", 3, 1, 2))

    assert [line.split() for line in lines[1:]] == [["test", "3", "MOS", "1", "..", "2"]]


def test_every_known_data_set_has_a_reference_but_your_own():
    assert [name for name, spec in SPECS.items() if not spec.references] == ["list", "csv"]
