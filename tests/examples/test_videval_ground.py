"""The grounds of videos: files as they are published, fair parts, scores on data never seen."""

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from scipy.io import savemat
from scipy.special import ndtri

from benchmarks.generalization import Generalization, main
from benchmarks.generalization_grounds.fitting import PlainTraining
from benchmarks.generalization_grounds.ground import Outcome
from benchmarks.generalization_grounds.methods import Recipe
from benchmarks.generalization_grounds.report import across
from benchmarks.generalization_grounds.rows import further_scores, over_items
from benchmarks.generalization_grounds.runs import build_ground
from benchmarks.generalization_grounds.selection import Choice
from benchmarks.generalization_grounds.videval import Videval
from benchmarks.generalization_grounds.videval_tables import (
    VideoTable,
    VidevalError,
    load_tables,
)

FILES = {"KONVID_1K": ("mos", 40), "LIVE_VQC": ("MOS", 30), "YOUTUBE_UGC": ("MOSFull", 50)}
GREY = (3, 6, 10, 22, 23, 46)  # of the first fifty rows of YouTube-UGC
FEATURES = 6


def write_clone(folder: Path) -> Path:
    """A small folder as the repository has it: sorted scores, missing features, grey clips."""
    generator = np.random.default_rng(0)
    (folder / "features").mkdir(parents=True)
    for prefix, (column, count) in FILES.items():
        features = generator.normal(size=(count, FEATURES))
        scores = features[:, 0] + generator.normal(size=count) / 2
        order = np.argsort(-scores)
        features, scores = features[order], scores[order]
        features[1, 2] = np.nan
        if prefix == "YOUTUBE_UGC":
            features[[row - 1 for row in GREY]] = 777.0
        savemat(folder / "features" / f"{prefix}_VIDEVAL_feats.mat", {"feats_mat": features})
        path = folder / "features" / f"{prefix}_metadata.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["id", column, "width"])
            rows.writerows([number, score, 960] for number, score in enumerate(scores))
    return folder


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    return write_clone(tmp_path_factory.mktemp("videval") / "clone")


def small(
    clone: Path,
    tables: Mapping[str, VideoTable] | None = None,
    epochs: int = 2,
    candidates: int = 2,
) -> Videval:
    plain = PlainTraining(epochs=epochs, batch=16, schedule="cosine")
    ground = Videval("konvid-1k", tables or load_tables(clone), plain, width=8)
    ground.grids = {name: values[:candidates] for name, values in ground.grids.items()}
    return ground


def without_time(outcome: Outcome) -> Outcome:
    return replace(outcome, cpu_seconds=0.0)


def test_rows_of_grey_clips_are_left_out_and_others_kept(clone):
    tables = load_tables(clone)

    counts = {name: len(table.scores) for name, table in tables.items()}
    assert counts == {"konvid-1k": 40, "live-vqc": 30, "youtube-ugc": 50 - len(GREY)}
    assert not (tables["youtube-ugc"].features == 777).any()
    assert np.isnan(tables["konvid-1k"].features).sum() == 1


def test_features_and_scores_of_a_row_belong_together(clone):
    table = load_tables(clone)["live-vqc"]

    assert stats.spearmanr(table.features[:, 0], table.scores).statistic > 0.7


def test_training_and_test_parts_are_not_those_of_sorted_rows(clone):
    """KoNViD-1k's file is sorted by score: its last fifth would be the worst videos alone."""
    tables = load_tables(clone)
    worst = tables["konvid-1k"].scores <= np.sort(tables["konvid-1k"].scores)[8]
    blind = replace(
        tables["konvid-1k"], features=np.where(worst[:, None], 0.0, tables["konvid-1k"].features)
    )

    seeing = small(clone).run(Recipe(), 0, "test")
    blinded = small(clone, {**tables, "konvid-1k": blind}).run(Recipe(), 0, "test")

    assert blinded.train_score != seeing.train_score


def test_neither_choice_nor_training_looks_at_what_is_tested_on(clone):
    """Opinion scores elsewhere change no validation score, nor what is predicted unseen."""
    tables = load_tables(clone)
    others = {
        name: table if name == "konvid-1k" else replace(table, scores=table.scores[::-1].copy())
        for name, table in tables.items()
    }

    for part in ("validation", "test"):
        first, second = (small(clone, t).run(Recipe(), 0, part) for t in (tables, others))
        assert (first.score, first.train_score) == (second.score, second.train_score)
        assert first.predicted == second.predicted


def test_validation_and_test_parts_of_a_seed_have_no_video_in_common(clone):
    tables = load_tables(clone)
    source = tables["konvid-1k"]
    marked = {**tables, "konvid-1k": replace(source, scores=np.arange(40, dtype=np.float32))}
    seen = {}

    for part in ("validation", "test"):
        ground = small(clone, marked)
        seen[part] = parts_seen(ground, part)

    assert not seen["validation"]["fitted"] & seen["validation"]["held"]
    assert not seen["test"]["fitted"] & seen["test"]["held"]
    assert not seen["validation"]["held"] & seen["test"]["held"]
    assert seen["validation"]["fitted"] < seen["test"]["fitted"]


def parts_seen(ground: Videval, part: str) -> dict[str, set[float]]:
    """The source's scores that a run fits and those that it is scored on."""
    from benchmarks.generalization_grounds import videval

    agreements = []
    measured = videval._agreement

    def noted(predict, data):
        agreements.append(set(data.scores.tolist()))
        return measured(predict, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(videval, "_agreement", noted)
        ground.run(Recipe(), 0, part)
    fitted, held = agreements[:2]
    return {"fitted": fitted, "held": held}


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("awp", 0.1, ascent="update"),
        Recipe("rwp", 0.5),
        Recipe(dropout=0.5),
        Recipe(magnitude=1.0, learner="ridge"),
        Recipe(magnitude=1.0, learner="svr"),
    ],
    ids=str,
)
def test_every_learner_is_scored_everywhere_and_reproducibly(clone, recipe):
    first, again = (small(clone).run(recipe, 1, "test") for _ in range(2))

    assert without_time(first) == without_time(again)
    places = ["zero-shot on live-vqc", "zero-shot on youtube-ugc"]
    places += ["fine-tuned on live-vqc", "fine-tuned on youtube-ugc"]
    assert set(first.also) == {
        "test PLCC", *places, *(f"{place} PLCC" for place in places),
    }  # fmt: skip
    assert first.passes == (0 if recipe.learner != "network" else 4)
    plain = small(clone).run(Recipe(), 1, "test")
    assert first.predicted != plain.predicted


def test_the_score_on_unseen_data_is_that_of_the_predictions(clone):
    ground = small(clone)

    outcome = ground.run(Recipe(), 0, "test")

    for place, predicted in outcome.predicted.items():
        found = stats.spearmanr(predicted, ground.opinion[place]).statistic
        assert outcome.also[place] == pytest.approx(found)


def test_features_are_normal_scores_of_ranks_and_missing_ones_in_the_middle():
    from benchmarks.generalization_grounds.videval import _normal_scores

    training = np.random.default_rng(0).permutation(101).astype(float)[:, None] ** 3
    scale = _normal_scores(training)

    given = np.array([[10.0**3], [50.0**3], [75.0**3], [np.nan], [1e9], [-1e9]])
    values = scale(given)[:, 0]

    assert values[:3] == pytest.approx(ndtri([0.1, 0.5, 0.75]), abs=1e-5)
    assert values[3:].tolist() == [0.0, 3.0, -3.0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("remove", "KONVID_1K_VIDEVAL_feats.mat: expected a MATLAB file"),
        ("shorten", "expected a score for every row of features, got 39 and 40"),
        ("rename", r"LIVE_VQC_metadata.csv, row 2: expected a number in the column 'MOS'"),
        ("infinite", "expected finite features"),
    ],
)
def test_a_folder_that_is_something_else_is_named(tmp_path, damage, message):
    features = write_clone(tmp_path / "clone") / "features"
    if damage == "remove":
        (features / "KONVID_1K_VIDEVAL_feats.mat").unlink()
    elif damage == "infinite":
        matrix = {"feats_mat": np.full((30, FEATURES), np.inf)}
        savemat(features / "LIVE_VQC_VIDEVAL_feats.mat", matrix)
    elif damage == "shorten":
        path = features / "KONVID_1K_metadata.csv"
        path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    else:
        path = features / "LIVE_VQC_metadata.csv"
        path.write_text(path.read_text().replace("MOS", "score"))

    with pytest.raises(VidevalError, match=message):
        load_tables(tmp_path / "clone")


def test_a_ground_of_videos_without_its_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="videval: expected a clone of vztu/VIDEVAL"):
        build_ground("live-vqc", tmp_path)


def outcome(score: float, unseen: float, predicted: list[float]) -> Outcome:
    return Outcome(
        score, 1.0, 1, 1.0, {"zero-shot on a": unseen, "zero-shot on a PLCC": 0.0},
        {"zero-shot on a": predicted},
    )  # fmt: skip


def test_further_scores_are_compared_like_the_first():
    choices = {name: Choice(name, Recipe(), {}) for name in ("plain", "awp")}
    outcomes = {
        "plain": [outcome(0.5, 0.1, [1, 2, 3]), outcome(0.6, 0.3, [1, 2, 3])],
        "awp": [outcome(0.5, 0.4, [1, 2, 3]), outcome(0.6, 0.5, [3, 2, 1])],
    }

    rows = further_scores("g", choices, outcomes)["zero-shot on a"]

    assert [row.score for row in rows] == pytest.approx([0.2, 0.45])
    assert rows[1].difference == pytest.approx(0.25)
    assert across({"zero-shot on a": rows})["awp"] == pytest.approx(0.25)
    low, high = over_items(outcomes, {"zero-shot on a": [1, 2, 3]})["zero-shot on a"]["awp"]
    assert low <= high <= 0


def test_the_program_writes_every_score_and_the_figure_of_transfer(clone, tmp_path, capsys):
    settings = Generalization(
        grounds=("konvid-1k",), seeds=2, tuning_seeds=1, videval=clone,
        output=tmp_path / "out", runs=tmp_path / "runs",
    )  # fmt: skip

    main(settings, lambda name, mini_ugc, videval: small(videval, None, 1, 1))

    document = json.loads((tmp_path / "out" / "generalization.json").read_text("utf-8"))
    own = document["konvid-1k"]
    methods = {row["method"] for row in own["rows"]}
    assert {"ridge", "svr", "awp-update", "awp-late", "awp-quarter", "ordinary+update"} <= methods
    assert all({row["method"] for row in rows} == methods for rows in own["also"].values())
    assert set(own["over_items"]) == {"zero-shot on live-vqc", "zero-shot on youtube-ugc"}
    assert all(run["predicted"] == {} for runs in own["runs"].values() for run in runs)
    assert (tmp_path / "out" / "transfer.png").stat().st_size > 10_000
    assert "konvid-1k, fine-tuned on live-vqc" in capsys.readouterr().out
