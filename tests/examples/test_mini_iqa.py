"""mini-IQA: real image files, content-disjoint parts, deterministic."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vqa.datasets import load_dataset, specs
from vqa.synthetic.degradations import jpeg
from vqa.synthetic.mini_iqa import MiniIqaSettings, build_mini_iqa, is_mini_iqa

SMALL = MiniIqaSettings(seed=1, height=48, width=64, photographs=2, train_images=5, test_images=3)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def texture(height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "mini-iqa"
    assert build_mini_iqa(folder, SMALL)
    return folder


def test_the_csv_lists_every_image_of_both_parts(built):
    listed = rows(built)

    assert sorted(row["image_name"] for row in listed) == sorted(
        path.name for path in (built / "images").iterdir()
    )
    assert [row["split"] for row in listed] == ["train"] * 10 + ["test"] * 6


def test_images_are_jpeg_files_of_the_asked_size(built):
    for path in (built / "images").iterdir():
        with Image.open(path) as image:
            image.load()
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 48))


def test_scores_are_on_the_five_point_scale(built):
    scores = [float(row["mos"]) for row in rows(built)]

    assert min(scores) >= 1
    assert max(scores) <= 5
    assert len(set(scores)) > 8


def test_train_and_test_share_no_photograph(built):
    photographs = {
        part: {row["image_name"].rsplit("_", 1)[0] for row in rows(built) if row["split"] == part}
        for part in ("train", "test")
    }

    assert len(photographs["train"]) == len(photographs["test"]) == 2
    assert photographs["train"].isdisjoint(photographs["test"])


def test_files_and_scores_depend_on_the_settings_only(built, tmp_path):
    build_mini_iqa(tmp_path / "again", SMALL)

    assert contents(tmp_path / "again") == contents(built)


def test_a_complete_set_is_not_built_again(built):
    assert is_mini_iqa(built)
    assert not build_mini_iqa(built, SMALL)


def test_another_seed_gives_other_images(built, tmp_path):
    settings = MiniIqaSettings(
        seed=2, height=48, width=64, photographs=1, train_images=2, test_images=1
    )
    build_mini_iqa(tmp_path / "other", settings)

    other = contents(tmp_path / "other")
    assert all(other[name] != contents(built)[name] for name in other)


@pytest.mark.parametrize("name", ["mini-iqa", "csv"])
def test_the_image_adapters_read_it(built, name):
    dataset = load_dataset(name, built)

    assert dataset.kind == "image"
    assert [(s.path.name, s.score, s.part) for s in dataset.samples] == [
        (row["image_name"], float(row["mos"]), row["split"]) for row in rows(built)
    ]
    assert dataset.synthetic == (name == "mini-iqa")


def test_it_is_built_where_it_is_asked_for_and_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(specs, "MiniIqaSettings", lambda: SMALL)

    dataset = load_dataset("mini-iqa", tmp_path / "mini-iqa")

    assert [sample.part for sample in dataset.samples] == ["train"] * 10 + ["test"] * 6


def test_jpeg_gets_worse_with_strength_and_keeps_the_shape():
    clip = np.stack([texture(), texture()[::-1]])
    degraded = [jpeg(clip, strength, np.random.default_rng(0)) for strength in (0.0, 0.5, 1.0)]
    errors = [np.abs(each.astype(int) - clip).mean() for each in degraded]

    assert {each.shape for each in degraded} == {clip.shape}
    assert errors[0] < errors[1] < errors[2]
