"""mini-UGC: real files, content-disjoint parts, deterministic, never half-built."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.generalization_grounds.clips import load_clips
from vqa.datasets import load_dataset
from vqa.datasets.tables import read_list
from vqa.synthetic import mini_ugc
from vqa.synthetic.mini_ugc import MIXES, PARTS, MiniUgcSettings, build_mini_ugc, draw_chain
from vqa.synthetic.photographs import PHOTOGRAPHS, load_photograph

SMALL = MiniUgcSettings(
    seed=1, frames=4, height=48, width=64, photographs=2, train_clips=2, test_clips=1
)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "mini-ugc"
    assert build_mini_ugc(folder, SMALL)
    return folder


def test_every_part_has_a_label_list_of_real_videos(built):
    sizes = {part: load_clips(built / f"{part}.txt").luma.shape for part in PARTS}

    assert sizes == {"train": (4, 4, 48, 64), "test": (2, 4, 48, 64), "ood": (2, 4, 48, 64)}


def test_scores_are_on_the_five_point_scale(built):
    scores = [video.score for video in load_dataset("mini-ugc", built).samples]

    assert min(scores) >= 1
    assert max(scores) <= 5
    assert len(set(scores)) > 4


def test_files_and_labels_depend_on_the_settings_only(built, tmp_path):
    build_mini_ugc(tmp_path / "again", SMALL, processes=2)

    assert contents(tmp_path / "again") == contents(built)


def test_a_complete_set_is_not_built_again(built):
    before = contents(built)

    assert not build_mini_ugc(built, SMALL)
    assert contents(built) == before


def test_other_settings_replace_the_set(built, tmp_path, monkeypatch):
    monkeypatch.setattr(mini_ugc, "_write_parts", lambda folder, settings, processes: None)
    folder = tmp_path / "set"
    build_mini_ugc(folder, SMALL)
    (folder / "old.mp4").touch()

    assert build_mini_ugc(folder, MiniUgcSettings(seed=2))
    assert set(contents(folder)) == {"mini_ugc.json"}
    assert json.loads((folder / "mini_ugc.json").read_text())["settings"]["seed"] == 2


def test_an_interrupted_build_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupted(folder: Path, settings: MiniUgcSettings, processes: int) -> None:
        (folder / "train.txt").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(mini_ugc, "_write_parts", interrupted)

    with pytest.raises(KeyboardInterrupt):
        build_mini_ugc(tmp_path / "set", SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_files_is_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")

    with pytest.raises(ValueError, match="expected a mini-UGC set or an empty folder"):
        build_mini_ugc(tmp_path, SMALL)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_train_and_test_share_no_photograph(built):
    def photographs(part: str) -> set[str]:
        files = [Path(cells[0]) for cells in read_list(built / f"{part}.txt").rows.values()]
        return {file.stem.rsplit("_", 1)[0] for file in files}

    assert photographs("train").isdisjoint(photographs("test"))
    assert photographs("ood") == photographs("test")


def test_the_second_mix_has_degradations_that_training_never_sees():
    trained, foreign = set(MIXES["train"].kinds), set(MIXES["ood"].kinds)

    assert MIXES["train"] == MIXES["test"]
    assert len(foreign - trained) >= 3


@pytest.mark.parametrize("part", PARTS)
def test_chains_stay_in_their_mix_and_cover_it(part):
    random = np.random.default_rng(0)
    chains = [draw_chain(MIXES[part], random) for _ in range(300)]

    assert {link.kind for chain in chains for link in chain[:-1]} == set(MIXES[part].kinds)
    assert {chain[-1].kind for chain in chains} == set(MIXES[part].deliveries)
    assert {len(chain) - 1 for chain in chains} == {0, 1, 2}


@pytest.mark.parametrize("photograph", PHOTOGRAPHS, ids=lambda photograph: photograph.name)
def test_every_photograph_ships_with_its_package(photograph):
    pixels = load_photograph(photograph)

    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert min(pixels.shape[:2]) > 140
