"""Files that nobody has rated are scored by a trained model, each alike wherever it lies."""

import csv
import os
import re
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import av
import pytest
import torch
from command_line import IN_THIS_PROCESS_AND_ITS_OWN, REPOSITORY, call_command
from full_disk import room_for
from PIL import Image
from torchvision.models import resnet50
from video_files import Stream, textured_clip, write_stream

import fast_vqa
import sama_iqa
import sama_vqa
import score
import simple_vqa
from score import main, score_files
from vqa.features.key_frames import FrameDifferences
from vqa.io.files import InUseError
from vqa.models import build_model, other_owner
from vqa.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from vqa.training.distributed import own_device
from vqa.training.main import run_script
from vqa.training.settings import plain

SCRIPTS = {script.__name__: script for script in (fast_vqa, sama_vqa, sama_iqa, simple_vqa)}
SCRIPT = Path(score.__file__)
TINY = fast_vqa.PRESETS["tiny"][1]
H264 = Stream(options={"g": "10"})


@dataclass(frozen=True)
class Trained:
    """A model of a script after one epoch, and what it was trained on."""

    script: object
    settings: fast_vqa.Settings
    files: Path

    @property
    def checkpoint(self) -> Path:
        return self.settings.output / "split-0" / "best.pt"


def trained_by(name, few_videos, few_images, folder):
    script = SCRIPTS[name]
    files = few_images if script is sama_iqa else few_videos
    settings = replace(
        script.PRESETS["tiny"][1], **files, epochs=1, select_on="last", output=folder / name
    )
    if script is simple_vqa:
        settings = replace(settings, features=folder / "features")
    run_script(settings, script.task(settings))
    return Trained(script, settings, files["annotations"])


@pytest.fixture(scope="module", params=SCRIPTS)
def trained(request, few_videos, few_images, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return trained_by(request.param, few_videos, few_images, folder)


@pytest.fixture(scope="module")
def video_model(few_videos, few_images, tmp_path_factory):
    return trained_by("fast_vqa", few_videos, few_images, tmp_path_factory.mktemp("video"))


@pytest.fixture(scope="module")
def image_model(few_videos, few_images, tmp_path_factory):
    return trained_by("sama_iqa", few_videos, few_images, tmp_path_factory.mktemp("image"))


@pytest.fixture
def clip(tmp_path):
    return write_stream(tmp_path / "clip.mp4", textured_clip(20, 120, 160), H264)


def rows_of(table):
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_scores_are_those_of_testing_to_the_bit(trained, tmp_path):
    tested = replace(
        trained.settings, evaluate=trained.checkpoint, part="all", output=tmp_path / "tested"
    )
    run_script(tested, trained.script.task(tested))

    found = score_files(trained.checkpoint, [trained.files], raw=True)

    predicted = {
        row["path"]: float(row["score"]) for row in rows_of(tested.output / "predictions.csv")
    }
    scores = {os.path.normpath(file.path): file.score for file in found}
    assert len(scores) >= 18
    assert all(predicted[path] == score for path, score in scores.items())
    assert len(set(scores.values())) > 5


def test_a_file_has_one_score_alone_and_among_others(trained):
    together = score_files(trained.checkpoint, [trained.files])
    files = [file.path for file in together]

    alone = [score_files(trained.checkpoint, [file])[0] for file in files[:3]]

    assert alone == together[:3]
    assert score_files(trained.checkpoint, files[::-1]) == together[::-1]


@pytest.mark.slow
def test_the_number_of_workers_does_not_show(image_model):
    together = score_files(image_model.checkpoint, [image_model.files])

    assert score_files(image_model.checkpoint, [image_model.files], workers=2) == together


def test_scores_lie_on_the_scale_of_the_opinion_scores(trained):
    scale = load_checkpoint(trained.checkpoint).scale

    raw = score_files(trained.checkpoint, [trained.files], raw=True)
    told = score_files(trained.checkpoint, [trained.files])

    assert 1 < scale.opinion_mean < 5
    for own, file in zip(raw, told, strict=True):
        standardised = (own.score - scale.predicted_mean) / scale.predicted_deviation
        assert file.score == pytest.approx(
            scale.opinion_mean + standardised * scale.opinion_deviation
        )


def test_threads_and_random_numbers_of_the_caller_stay(video_model, clip):
    torch.set_num_threads(2)
    state = torch.get_rng_state()

    score_files(video_model.checkpoint, [clip])

    assert torch.get_num_threads() == 2
    assert torch.get_rng_state().equal(state)


def test_a_single_path_is_one_path(video_model, clip):
    assert score_files(str(video_model.checkpoint), str(clip)) == score_files(
        video_model.checkpoint, [clip]
    )


def called(trained, *paths, output, **changes):
    return main(score.Score(trained.checkpoint, tuple(paths), output=output, **changes))


def test_what_cannot_be_read_has_an_error_and_the_others_a_score(
    video_model, clip, photograph, tmp_path, capsys
):
    bad = tmp_path / "bad.mp4"
    bad.write_text("hello")
    gone = tmp_path / "gone.mp4"
    table = tmp_path / "scores.csv"

    status = called(video_model, bad, clip, gone, photograph, output=table)

    rows = rows_of(table)
    assert status == 1
    assert [Path(row["path"]) for row in rows] == [bad, clip, gone, photograph]
    assert [bool(row["score"]) for row in rows] == [False, True, False, False]
    assert [bool(row["error"]) for row in rows] == [True, False, True, True]
    assert "cannot be decoded" in rows[0]["error"]
    assert "No such file" in rows[2]["error"]
    assert "expected a video, found an image" in rows[3]["error"]
    printed = capsys.readouterr()
    assert "scale: the synthetic opinion" not in printed.out  # the list is not known to be so
    assert "scale: the opinion scores of its training (list: mean" in printed.out
    assert "1 of 4 files have a score" in printed.out
    lines = [line for line in printed.err.splitlines() if str(tmp_path) in line]
    assert len(lines) == 3


@pytest.mark.parametrize(("paths", "status"), [(["clip.mp4"], 0), (["bad.mp4"], 2)])
def test_the_status_says_whether_all_or_none_have_a_score(
    video_model, clip, tmp_path, paths, status
):
    (tmp_path / "bad.mp4").write_text("hello")
    table = tmp_path / "scores.csv"

    assert called(video_model, *(tmp_path / path for path in paths), output=table) == status
    assert len(rows_of(table)) == 1


def test_a_model_for_images_scores_no_video_and_says_which_does(image_model, clip, photograph):
    video, image = score_files(image_model.checkpoint, [clip, photograph])

    assert "found a video; a model for videos scores it" in video.error
    assert image.error is None


def test_what_moves_is_a_video_even_as_gif(video_model, tmp_path):
    frames = [Image.fromarray(frame) for frame in textured_clip(8, 100, 120)]
    frames[0].save(tmp_path / "still.gif")
    frames[0].save(tmp_path / "moves.gif", save_all=True, append_images=frames[1:], duration=40)

    still, moves = score_files(
        video_model.checkpoint, [tmp_path / "still.gif", tmp_path / "moves.gif"]
    )

    assert "found an image" in still.error
    assert moves.score is not None


def test_weights_that_give_no_number_give_no_score(video_model, clip, tmp_path):
    checkpoint = load_checkpoint(video_model.checkpoint)
    weights = {name: tensor.clone() for name, tensor in checkpoint.state_dict.items()}
    weights["head.2.bias"] += torch.inf
    save_checkpoint(tmp_path / "inf.pt", replace(checkpoint, state_dict=weights))

    (file,) = score_files(tmp_path / "inf.pt", [clip])

    assert (file.score, file.error) == (None, "the model gives inf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda own: {"scale": None},
            r"expected the scale of the opinion scores, .* or ask for .* --raw",
        ),
        (lambda own: {"version": 1}, "expected version 2 .* got 1"),
        (lambda own: {"script": "toy"}, "expected a checkpoint of fast_vqa, .* 'toy'"),
        (lambda own: {"settings": {**own["settings"], "new": 1}}, "its settings .* got 'new'"),
        (
            lambda own: {"settings": {**own["settings"], "model": "a"}},
            ".*model: expected one of .*'a'",
        ),
        (
            lambda own: {"state_dict": {n: t * torch.nan for n, t in own["state_dict"].items()}},
            "its state dict: .* with NaN",
        ),
        (lambda own: {"format": "torch-awp training run"}, ".* whose weights are in best.pt"),
        (lambda own: {"format": "?"}, ".* got something else; published weights need --model"),
    ],
    ids=["scale", "version", "script", "setting", "model", "NaN", "run", "format"],
)
def test_a_checkpoint_that_cannot_be_used_is_named(video_model, clip, tmp_path, change, message):
    own = torch.load(video_model.checkpoint, weights_only=True)
    torch.save({**own, **change(own)}, tmp_path / "odd.pt")

    with pytest.raises(CheckpointError, match=rf"odd\.pt: {message}"):
        score_files(tmp_path / "odd.pt", [clip])


@pytest.mark.parametrize("content", [b"", b"<html>", None], ids=["empty", "page", "missing"])
def test_what_is_no_checkpoint_is_named_in_one_line(clip, tmp_path, content):
    if content is not None:
        (tmp_path / "odd.pt").write_bytes(content)

    with pytest.raises(CheckpointError, match=r"odd\.pt: expected a checkpoint, .*$") as found:
        score_files(tmp_path / "odd.pt", [clip])
    assert len(str(found.value).splitlines()) == 1


def test_raw_scores_need_no_scale(video_model, clip, tmp_path):
    checkpoint = load_checkpoint(video_model.checkpoint)
    save_checkpoint(tmp_path / "unscaled.pt", replace(checkpoint, scale=None))

    assert score_files(tmp_path / "unscaled.pt", [clip], raw=True) == score_files(
        video_model.checkpoint, [clip], raw=True
    )


def test_settings_of_before_are_as_they_were_by_default(video_model, clip, tmp_path):
    checkpoint = load_checkpoint(video_model.checkpoint)
    fewer = {name: value for name, value in checkpoint.settings.items() if name != "part"}
    save_checkpoint(tmp_path / "old.pt", replace(checkpoint, settings=fewer))

    assert score_files(tmp_path / "old.pt", [clip]) == score_files(video_model.checkpoint, [clip])


def test_published_weights_of_fast_vqa_score_on_the_published_scale(clip, tmp_path, monkeypatch):
    # Of a clip of two frames, since the whole one takes a minute.
    short = {"fast_vqa": ("fast_vqa", replace(fast_vqa.PAPER, frames=2, test_clips=1))}
    monkeypatch.setattr(score, "_PUBLISHED", short)
    model = build_model("fast_vqa")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "published.pth")

    (raw,) = score_files(tmp_path / "published.pth", [clip], model="fast_vqa", raw=True)
    (told,) = score_files(tmp_path / "published.pth", [clip], model="fast_vqa")

    z = torch.tensor((raw.score + 0.110198185) / 0.04178565, dtype=torch.float64)
    assert told.score == pytest.approx(z.sigmoid().item(), rel=1e-9)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [(-0.110198185, 0.5), (-0.110198185 + 0.04178565, 0.7310585786), (1e3, 1.0), (-1e3, 0.0)],
)
def test_the_published_scale_is_a_sigmoid(raw, expected):
    assert score.PUBLISHED["fast_vqa"].tell(raw) == pytest.approx(expected)


def test_the_small_variants_scale_has_other_constants():
    tell = score.PUBLISHED["fast_vqa_m"].tell

    assert tell(0.023889644) == 0.5
    assert tell(0.023889644 + 0.030781006) == pytest.approx(0.7310585786)


def test_a_backbone_is_no_model_to_score_with(tmp_path):
    torch.save(resnet50().state_dict(), tmp_path / "resnet50.pth")
    model = build_model("simple_vqa")

    with pytest.raises(ValueError, match=r"resnet50\.pth: expected weights of a whole SimpleVqa"):
        score.load_weights(model, tmp_path / "resnet50.pth")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "fast_vqa"}, "model: expected none for .*best.pt, a checkpoint that says"),
        ({"slowfast_weights": Path("a.pyth")}, "slowfast_weights: expected none but for SimpleVQA"),
        ({"workers": -1}, "workers: expected at least 0, got -1"),
        ({"output": Path()}, "output: expected a new file or an older table of scores, . is some"),
    ],
)
def test_an_argument_that_cannot_be_used_is_named(video_model, clip, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        called(video_model, clip, **{"output": tmp_path / "scores.csv", **changes})


def test_features_are_made_as_they_were_for_the_training(few_videos, few_images, tmp_path, clip):
    trained = trained_by("simple_vqa", few_videos, few_images, tmp_path)
    expected = score_files(trained.checkpoint, [clip])
    shutil.rmtree(tmp_path / "features")
    assert score_files(trained.checkpoint, [clip]) == expected
    checkpoint = load_checkpoint(trained.checkpoint)
    features = {**checkpoint.features, "settings": {**checkpoint.features["settings"]}}
    features["settings"]["key_frames"] = 1
    save_checkpoint(tmp_path / "one.pt", replace(checkpoint, features=features))

    assert score_files(tmp_path / "one.pt", [clip]) != expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"motion": "frame_differences 0"}, "slowfast_weights: expected those of the training"),
        ({"version": 1}, "expected a training on features of version 2, got 1"),
    ],
)
def test_other_features_than_in_training_are_refused(tmp_path, clip, change, message):
    settings = replace(simple_vqa.PRESETS["tiny"][1], features=tmp_path / "none")
    made = {"version": 2, "settings": plain_features(), "motion": FrameDifferences.fingerprint}
    checkpoint = score.Checkpoint(
        "simple_vqa",
        plain(settings),
        1,
        simple_vqa.task(settings).build().state_dict(),
        features={**made, **change},
    )
    save_checkpoint(tmp_path / "best.pt", checkpoint)

    with pytest.raises(ValueError, match=message):
        score_files(tmp_path / "best.pt", [clip], raw=True)


def plain_features():
    return {
        "key_frames": 4,
        "per_second": 8,
        "short_side": 128,
        "chunk": 6,
        "motion": "frame_differences",
    }


def test_an_older_table_stays_until_the_new_one_is_complete(
    video_model, clip, tmp_path, monkeypatch, capsys
):
    table = tmp_path / "scores.csv"
    table.write_text("path,score,error\nold.mp4,1,\n")

    def interrupted(scorer, files, workers, per_clip):
        yield score.FileScore(clip, 0.5)
        raise KeyboardInterrupt

    monkeypatch.setattr(score.Scorer, "score_each", interrupted)
    with pytest.raises(KeyboardInterrupt):
        called(video_model, clip, output=table)

    assert table.read_text() == "path,score,error\nold.mp4,1,\n"
    (part,) = tmp_path.glob("scores.csv.*.part")
    (row,) = rows_of(part)
    assert (row["path"], row["score"], row["error"]) == (str(clip), "0.5", "")
    assert f"the first 1 rows are in {part}" in capsys.readouterr().err


def test_an_older_table_is_replaced_and_nothing_else(video_model, clip, tmp_path):
    table, labels = tmp_path / "scores.csv", tmp_path / "my scores.csv"
    table.write_text("path,score,error\nold.mp4,1,\n")
    labels.write_text("path,score\nclip.mp4,3.5\n")

    assert called(video_model, clip, output=table) == 0
    with pytest.raises(ValueError, match=r"output: expected .*my scores\.csv is something else"):
        called(video_model, clip, output=labels)

    assert [row["path"] for row in rows_of(table)] == [str(clip)]
    assert labels.read_text() == "path,score\nclip.mp4,3.5\n"
    assert sorted(tmp_path.glob("*.part")) == []


def test_odd_names_come_back_from_the_table(video_model, clip, tmp_path):
    folder = tmp_path / "folder"
    names = ["a, b.mp4", "two\nlines.mp4", 'a "quoted" one.mp4', "-dash.mp4"]
    folder.mkdir()
    for name in names:
        shutil.copy(clip, folder / name)
    shutil.copy(clip, os.fsencode(folder / "bytes") + b"\xff.mp4")
    table = tmp_path / "scores.csv"

    assert called(video_model, folder, output=table) == 0

    rows = rows_of(table)
    assert {row["path"] for row in rows} == {
        *(str(folder / name) for name in names),
        str(folder / "bytes\\udcff.mp4"),
    }
    assert len({row["score"] for row in rows}) == 1
    again = tmp_path / "again.csv"
    called(video_model, table, output=again)
    assert [bool(row["score"]) for row in rows_of(again)].count(True) == len(names)


def commands(section):
    """The command lines that examples/README.md gives first under a heading."""
    text = (REPOSITORY / "examples/README.md").read_text("utf-8").split(f"## {section}\n")[1]
    block = re.findall(r"```bash\n(.*?)```", text.split("\n## ")[0], re.DOTALL)[0]
    return [line.split("#")[0].split() for line in block.splitlines()]


def python(command, folder, *more):
    """Run a command of that page in another folder, with more arguments."""
    program, script, *arguments = command
    assert program == "python"
    return call_command(REPOSITORY / script, *arguments, *more, folder=folder)


@pytest.mark.parametrize("script", ["fast_vqa", "sama_iqa"])
def test_a_new_user_scores_own_files_by_what_the_readme_says(
    script, few_videos, few_images, tmp_path, clip, photograph
):
    train, scoring = commands("Score your own files")
    own = tmp_path / "my_videos"
    own.mkdir()
    shutil.move(clip, own / "holiday.mp4")
    shutil.copy(photograph, own / "photograph.png")
    (own / "notes.txt").write_text("nothing to score")
    shutil.copy(own / "holiday.mp4", tmp_path / "clip.mp4")
    if script == "sama_iqa":  # as the comment there has it
        train = [word.replace("fast_vqa", "sama_iqa") for word in train]
        scoring = [word.replace("fast_vqa/mini-ugc", "sama_iqa/mini-iqa") for word in scoring]
        scoring = [word.replace("clip.mp4", "photograph.png") for word in scoring]
    data = few_images if script == "sama_iqa" else few_videos
    checkpoint = Path(scoring[2])

    trained = python(
        train,
        tmp_path,
        *("--data-root", data["data_root"], "--output", checkpoint.parents[1], "--epochs", "1"),
    )
    scored = python(scoring, tmp_path)

    assert trained.returncode == 0, trained.stderr
    assert scored.returncode == 0, scored.stderr
    kind = "photograph.png" if script == "sama_iqa" else "holiday.mp4"
    first, second = rows_of(tmp_path / "scores.csv")
    assert first["path"] == f"my_videos/{kind}"
    assert first["score"] == second["score"]
    for told in (
        "scale: the synthetic opinion scores of its training",
        "passed over: 1 ",
        "2 of 2",
    ):
        assert told in scored.stdout


@IN_THIS_PROCESS_AND_ITS_OWN
def test_a_wrong_call_is_one_line_and_status_2(tmp_path, run):
    done = run(SCRIPT, tmp_path / "gone.pt", tmp_path, "--output", tmp_path / "scores.csv")

    assert done.returncode == 2
    assert "gone.pt: expected a checkpoint, there is no file" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "scores.csv").exists()


@pytest.fixture
def several(tmp_path):
    """A folder of five short videos that differ."""
    folder = tmp_path / "several"
    folder.mkdir()
    for number in range(5):
        write_stream(folder / f"{number}.mp4", textured_clip(9, 64, 80, seed=number), H264)
    return folder


@pytest.fixture
def scored(monkeypatch):
    """Names of the files that were read to be scored; reading the third one is interrupted once."""
    names = []
    whole = score.Scorer.score_each

    def each(scorer, files, *more):
        for own in whole(scorer, files, *more):
            if len(names) == 2:
                names.append("interrupt")
                raise KeyboardInterrupt
            names.append(own.path.name)
            yield own

    monkeypatch.setattr(score.Scorer, "score_each", each)
    return names


def test_an_interrupted_scoring_goes_on_and_gives_the_same_tables(
    video_model, several, tmp_path, scored, capsys
):
    table, clips = tmp_path / "scores.csv", tmp_path / "clips.csv"
    with pytest.raises(KeyboardInterrupt):
        called(video_model, several, output=table, per_clip=clips)
    assert not clips.exists()

    assert called(video_model, several, output=table, per_clip=clips) == 0

    assert scored == ["0.mp4", "1.mp4", "interrupt", "2.mp4", "3.mp4", "4.mp4"]
    assert "resumed: 2 files have a score from before" in capsys.readouterr().out
    called(video_model, several, output=tmp_path / "a.csv", per_clip=tmp_path / "b.csv")
    assert table.read_text() == (tmp_path / "a.csv").read_text()
    assert clips.read_text() == (tmp_path / "b.csv").read_text()
    assert list(tmp_path.glob("*.part")) == []


@pytest.mark.parametrize("change", ["file", "cut", "never", "raw"])
def test_of_an_interrupted_scoring_only_what_is_the_same_counts(
    video_model, several, tmp_path, scored, change
):
    table = tmp_path / "scores.csv"
    with pytest.raises(KeyboardInterrupt):
        called(video_model, several, output=table)
    (part,) = tmp_path.glob("scores.csv.*.part")
    if change == "file":
        os.utime(several / "0.mp4", (1, 1))
    elif change == "cut":
        part.write_bytes(part.read_bytes()[:-3])
    options = {"never": {"resume": "never"}, "raw": {"raw": True}}.get(change, {})

    called(video_model, several, output=table, **options)

    again = {"file": ["0.mp4"], "cut": ["1.mp4"]}.get(change, ["0.mp4", "1.mp4"])
    assert scored[3:] == [*again, "2.mp4", "3.mp4", "4.mp4"]
    expected = score_files(video_model.checkpoint, several, raw=change == "raw")
    assert [float(row["score"]) for row in rows_of(table)] == [own.score for own in expected]


def test_a_table_belongs_to_one_running_scoring(video_model, clip, tmp_path, monkeypatch):
    table = tmp_path / "scores.csv"

    def nested(scorer, files, workers, per_clip):
        with pytest.raises(InUseError, match=r"scores\.csv: expected that no other command writes"):
            called(video_model, clip, output=table)
        yield score.FileScore(clip, 0.5)

    monkeypatch.setattr(score.Scorer, "score_each", nested)
    assert called(video_model, clip, output=table) == 0

    assert [row["score"] for row in rows_of(table)] == ["0.5"]


def test_a_score_is_the_mean_of_those_of_its_clips(trained, tmp_path):
    table, clips = tmp_path / "scores.csv", tmp_path / "clips.csv"
    if trained.script is sama_iqa:
        with pytest.raises(ValueError, match="per_clip: expected a model for videos"):
            called(trained, trained.files, output=table, per_clip=clips)
        return

    called(trained, trained.files, output=table, per_clip=clips)

    by_path = {}
    for row in rows_of(clips):
        assert int(row["clip"]) == len(by_path.setdefault(row["path"], []))
        by_path[row["path"]].append(float(row["score"]))
    scores = {row["path"]: float(row["score"]) for row in rows_of(table)}
    assert by_path.keys() == scores.keys()
    assert {len(own) for own in by_path.values()} == {4}  # clips, or key frames
    for path, own in by_path.items():
        assert sum(own) / 4 == pytest.approx(scores[path], rel=1e-5)
    assert any(max(own) - min(own) > 1e-3 for own in by_path.values())


def test_folders_have_the_mean_of_their_files(video_model, several, clip, tmp_path):
    (several / "bad.mp4").write_text("hello")
    table, folders = tmp_path / "scores.csv", tmp_path / "folders.csv"

    called(video_model, several, clip, output=table, per_folder=folders)

    scores = [float(row["score"]) for row in rows_of(table) if row["score"]]
    first, second = rows_of(folders)
    assert (first["folder"], first["files"]) == (str(several), "5")
    assert float(first["score"]) == pytest.approx(sum(scores[:5]) / 5)
    assert (second["folder"], float(second["score"])) == (str(tmp_path), scores[5])


@pytest.mark.parametrize("argument", ["per_clip", "per_folder"])
def test_no_other_file_is_lost_for_a_second_table(video_model, clip, tmp_path, argument):
    (tmp_path / "labels.csv").write_text("path,score\n")

    with pytest.raises(ValueError, match=rf"{argument}: expected a new file .*labels\.csv"):
        called(video_model, clip, output=tmp_path / "a.csv", **{argument: tmp_path / "labels.csv"})


def hdr_video(path, transfer):
    """Ten bits with the brightness of HDR, or not, as an encoder notes it."""
    options = {"x264-params": f"transfer={transfer}", "g": "4"}
    kind = Stream(codec="libx264", options=options, pixels="yuv420p10le")
    return write_stream(path, textured_clip(9, 64, 80), kind)


def test_files_whose_scores_are_doubtful_since_they_are_hdr_are_named(
    video_model, tmp_path, capsys
):
    pq = hdr_video(tmp_path / "pq.mp4", "smpte2084")
    hlg = hdr_video(tmp_path / "hlg.mkv", "arib-std-b67")
    sdr = hdr_video(tmp_path / "sdr.mp4", "bt709")
    transfers = []
    for file in (pq, hlg, sdr):  # as ffprobe would say
        with av.open(file) as container:
            transfers.append(next(container.decode(video=0)).color_trc)
    assert transfers == [16, 18, 1]

    called(video_model, pq, hlg, sdr, output=tmp_path / "scores.csv")

    (line,) = [line for line in capsys.readouterr().out.splitlines() if "HDR" in line]
    assert line.startswith("doubtful: 2 files are HDR (PQ or HLG)")
    assert "pq.mp4" in line
    assert "hlg.mkv" in line
    assert "sdr.mp4" not in line


@pytest.mark.parametrize(("room", "whole_rows"), [(20, 0), (150, 1)])
def test_a_full_disk_ends_a_scoring_with_an_error_that_names_the_table(
    video_model, several, tmp_path, capsys, monkeypatch, room, whole_rows
):
    monkeypatch.setattr(sys, "argv", ["score.py"])  # which is written, too
    monkeypatch.chdir(tmp_path)  # and so are paths
    several = Path(several.name)
    table = Path("scores.csv")

    with pytest.raises(OSError, match="File too large") as found, room_for(room):
        called(video_model, several, output=table)

    assert found.value.filename.startswith(str(table))
    assert not table.exists()
    assert ("rows are in" in capsys.readouterr().err) == (whole_rows > 0)
    assert called(video_model, several, output=table) == 0
    assert len(rows_of(table)) == 5


@pytest.mark.parametrize(
    ("name", "model", "owner"),
    [
        ("FAST_VQA_3D_1_1.pth", "fast_vqa", "FasterVQA"),
        ("FAST_VQA_3D_1*1_Scr.pth", "sama_vqa", "FasterVQA"),
        ("FasterVQA-MS.pth", "fast_vqa_m", "FasterVQA"),
        ("FAST_VQA_B_1_4.pth", "sama_vqa", "FAST-VQA"),
        ("FAST-VQA-M.pth", "fast_vqa", "FAST-VQA-M"),
        ("SAMA-baseline_val-ltest_s_dev_v0.0.pth", "fast_vqa", "SAMA"),
        ("FAST_VQA_B_1_4.pth", "fast_vqa", None),
        ("FAST_VQA_M_1*4.pth", "fast_vqa_m", None),
        ("SAMA-baseline_val-ltest_s_dev_v0.0.pth", "sama_vqa", None),
        ("weights.pth", "sama_vqa", None),
    ],
)
def test_weights_are_known_by_the_name_of_their_file(name, model, owner):
    assert other_owner(Path(name), model) == owner


def test_weights_that_fit_by_shape_alone_are_refused_by_name(tmp_path, monkeypatch, capsys):
    file = tmp_path / "FAST_VQA_3D_1_1.pth"
    file.touch()

    with pytest.raises(ValueError, match=r"model: .*FAST_VQA_3D_1_1\.pth is known as FasterVQA's"):
        score.load_scorer(file, "fast_vqa")
    monkeypatch.setattr(score, "_PUBLISHED", {"fast_vqa": ("fast_vqa", TINY)})
    with pytest.raises(ValueError, match="expected a file of tensors"):  # it is empty
        score.load_scorer(file, "fast_vqa", raw=True)

    assert "warning: FAST_VQA_3D_1_1.pth is known as FasterVQA's" in capsys.readouterr().out


def test_a_published_scale_names_the_one_file_that_it_belongs_to(tmp_path):
    assert "FAST_VQA_B_1_4.pth alone" in score.PUBLISHED["fast_vqa"].name
    assert "FAST_VQA_M_1_4.pth alone" in score.PUBLISHED["fast_vqa_m"].name


@pytest.mark.parametrize(
    ("device", "gpus", "processes", "expected"),
    [
        ("auto", 0, 1, "cpu"),
        ("auto", 2, 1, "cuda:0"),
        ("cpu", 2, 1, "cpu"),
        ("cuda", 2, 1, "cuda:0"),
        ("cuda:1", 2, 1, "cuda:1"),
        ("cuda:1", 1, 1, "one of the 1 GPUs of this machine, got 'cuda:1'"),
        ("cuda", 0, 1, "one of the 0 GPUs of this machine, got 'cuda'"),
        ("cuda:1", 2, 2, "a GPU for each process, got 'cuda:1'"),
        ("gpu", 2, 1, "auto, cpu, cuda or cuda:NUMBER, got 'gpu'"),
        ("cuda:", 2, 1, "auto, cpu, cuda or cuda:NUMBER, got 'cuda:'"),
    ],
)
def test_one_gpu_of_several_can_be_named(monkeypatch, device, gpus, processes, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("WORLD_SIZE", str(processes))

    if "got" in expected:
        with pytest.raises(ValueError, match=f"device: expected {expected}"):
            own_device(device)
    else:
        assert str(own_device(device)) == expected
