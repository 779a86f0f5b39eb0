"""The scripts of all models train by every method from one call, and go on where they stopped."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiers import first_fast
from torch import nn
from video_files import Stream, cut, textured_clip, write_stream

import fast_vqa
import sama_iqa
import sama_vqa
import simple_vqa
from vqa.features.cache import FeatureError
from vqa.training.losses import quality_loss
from vqa.training.main import run_script
from vqa.training.settings import Settings

SCRIPTS = {script.__name__: script for script in (fast_vqa, sama_vqa, sama_iqa, simple_vqa)}
ONE_FAST = pytest.mark.parametrize("script", first_fast(SCRIPTS), indirect=True)
PERTURB = ["none", "rwp", "awp", "awp-update"]


@pytest.fixture(params=SCRIPTS)
def script(request):
    return SCRIPTS[request.param]


@pytest.fixture
def tiny(script, few_videos, few_images, tmp_path_factory) -> Settings:
    """The tiny preset on a few files."""
    files = few_images if script is sama_iqa else few_videos
    settings = replace(script.PRESETS["tiny"][1], **files, epochs=2)
    if script is simple_vqa:
        settings = replace(settings, features=tmp_path_factory.getbasetemp() / "features")
    return settings


def run(script, settings):
    results = run_script(settings, script.task(settings))
    assert results is not None
    return json.loads(results.read_text())["splits"][0]


@ONE_FAST
def test_every_method_trains_from_one_call_and_differs_from_the_others(script, tiny, tmp_path):
    tested = {
        perturb: run(script, replace(tiny, perturb=perturb, output=tmp_path / perturb))
        for perturb in PERTURB
    }

    weights = {
        perturb: torch.load(tmp_path / perturb / "split-0" / "last.pt", weights_only=True)
        for perturb in PERTURB
    }
    first = [next(iter(saved["parts"]["model"].values())) for saved in weights.values()]
    assert all(split["steps"] >= 2 for split in tested.values())
    assert len({tuple(tensor.flatten().tolist()) for tensor in first}) == len(PERTURB)


@ONE_FAST
def test_a_run_goes_on_where_it_stopped(script, tiny, tmp_path):
    whole = run(script, replace(tiny, output=tmp_path / "whole"))
    stopped = replace(tiny, output=tmp_path / "stopped", save_every=1)
    training = _StopsAfter(script.task(stopped), reads=30)
    with pytest.raises(KeyboardInterrupt):
        run_script(stopped, training.task)
    assert (tmp_path / "stopped" / "split-0" / "last.pt").exists()

    resumed = run(script, stopped)

    for part in ("train", "validation", "test", "steps", "best_epoch"):
        assert resumed[part] == whole[part]


@pytest.fixture
def odd_videos(tmp_path, few_videos):
    """A few usable videos, some of an unusual kind, and others that cannot be read."""
    root = tmp_path / "odd videos"
    root.mkdir()
    for number, file in enumerate(sorted(few_videos["data_root"].rglob("*.mp4"))[:18]):
        shutil.copy(file, root / f"{number}.mp4")
    h264, lossless = Stream(options={"g": "10"}), Stream("matroska", "ffv1", pixels="bgr0")
    write_stream(root / "one frame.mkv", textured_clip(1), lossless)
    write_stream(root / "small.mkv", textured_clip(9, 17, 33), lossless)
    write_stream(root / ("\u89c6" * 78 + ".mp4"), textured_clip(30), h264)
    write_stream(root / "a: b.mp4", textured_clip(30), h264)
    undecodable = write_stream(root / "bad codec.mp4", textured_clip(9), h264)
    undecodable.write_bytes(undecodable.read_bytes().replace(b"avc1", b"drmi"))
    cut(write_stream(root / "bad half.mkv", textured_clip(30), lossless), 0.5)
    cut(write_stream(root / "bad half.mp4", textured_clip(30), h264), 0.5)
    (root / "bad empty.mp4").touch()
    (root / "bad text.mp4").write_text("hello")
    names = sorted(file.name for file in root.iterdir())
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows((name, number % 7) for number, name in enumerate(names))
    return root


@pytest.mark.parametrize("name", first_fast(["fast_vqa", "sama_vqa", "simple_vqa"]))
def test_what_cannot_be_read_is_left_out_and_named(name, odd_videos, tmp_path, capsys):
    script = SCRIPTS[name]
    settings = replace(
        script.PRESETS["tiny"][1],
        dataset="csv",
        data_root=odd_videos,
        epochs=1,
        select_on="last",
        bad_files="skip",
        output=tmp_path / "out",
    )
    if script is simple_vqa:
        settings = replace(settings, features=tmp_path / "features")

    split = run(script, settings)

    bad = sorted(file.name for file in odd_videos.glob("bad *"))
    assert len(split["bad_files"]) == len(bad) == 5
    told = capsys.readouterr().out
    for name, message in zip(bad, split["bad_files"], strict=True):
        assert name in message
        assert message in told


class _StopsAfter:
    """A task that is interrupted after reading so many training files."""

    def __init__(self, task, reads):
        self._read, self._left = task.read, reads
        self.task = replace(task, read=self)

    def __call__(self, path: Path, generator: torch.Generator | None):
        if generator is not None:
            self._left -= 1
            if self._left < 0:
                raise KeyboardInterrupt
        return self._read(path, generator)


def test_a_dry_run_shows_what_would_happen(script, tiny, tmp_path, capsys):
    settings = replace(tiny, output=tmp_path / "nothing", dry_run=True)

    assert run_script(settings, script.task(settings)) is None

    told = capsys.readouterr().out
    for what in ("train", "model: Tiny", "inputs [", "GiB", "steps of"):
        assert what in told
    assert not (tmp_path / "nothing").exists()


@ONE_FAST
def test_fine_tuning_begins_with_the_trained_weights(script, tiny, tmp_path, capsys):
    run(script, replace(tiny, epochs=1, output=tmp_path / "first"))
    best = tmp_path / "first" / "split-0" / "best.pt"
    motionless = replace(tiny, epochs=1, learning_rate=0.0, seed=tiny.seed + 1)

    run(script, replace(motionless, finetune_from=best, output=tmp_path / "second"))

    assert "loaded" in capsys.readouterr().out
    trained, tuned = (
        torch.load(tmp_path / which / "split-0" / "best.pt", weights_only=True)["state_dict"]
        for which in ("first", "second")
    )
    weights = [name for name in trained if "running" not in name and "tracked" not in name]
    assert all(tuned[name].equal(trained[name]) for name in weights)


def clips_model(maps):
    """A model that gives these score maps."""

    class Fixed(nn.Module):
        def forward(self, clips):
            return maps

    return Fixed()


@pytest.mark.parametrize(
    ("perturbed_scores", "sums"),
    [
        ("fixed", {"first": 16, "later": 16, "test": 1}),
        ("released", {"first": 16, "later": 1, "test": 1}),
    ],
)
def test_samas_training_scores_are_sums_over_time(perturbed_scores, sums):
    settings = replace(sama_vqa.PAPER, perturbed_scores=perturbed_scores)
    maps = torch.randn(4, 1, 16, 7, 7)
    clips = torch.zeros(2, 2, 3, 32, 1, 1)
    mean = maps.view(2, -1).mean(dim=1)

    for phase, factor in sums.items():
        scores = sama_vqa.task(settings).scores(clips_model(maps), (clips,), phase)
        torch.testing.assert_close(scores, factor * mean)


def test_the_sum_over_time_reaches_the_rank_loss_alone():
    predicted, target = torch.randn(6), torch.randn(6)

    difference = quality_loss(16 * predicted, target) - quality_loss(predicted, target)

    assert difference > 0
    torch.testing.assert_close(
        quality_loss(16 * predicted, target, 0.0), quality_loss(predicted, target, 0.0)
    )


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        (simple_vqa.PAPER, {"schedule": "released"}, "schedule: has no effect on SimpleVQA"),
        (simple_vqa.PAPER, {"backbone_factor": 1.0}, "backbone_factor: has no effect"),
        (sama_iqa.PAPER, {"schedule": "released"}, "schedule: has no effect on SAMA for images"),
        (fast_vqa.PRESETS["tiny"][1], {"frames": 8}, "frames: has no effect on"),
        (sama_vqa.PRESETS["tiny"][1], {"relative_tables": "copy"}, "relative_tables: has no"),
        (fast_vqa.PAPER, {"test_clips": 0}, "test_clips: expected at least 1, got 0"),
    ],
)
def test_a_setting_without_effect_is_refused(settings, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(settings, **changes)


def test_samas_image_preset_has_the_published_values():
    paper = sama_iqa.PAPER

    assert (paper.epochs, paper.warm_up_epochs, paper.batch, paper.ema) == (50, 5, 64, 0.999)
    assert (paper.protocol, paper.splits, paper.seed) == ("sama", tuple(range(10)), 44442)
    rates = [sama_iqa.task(paper).multiplier(step, 100) for step in (0, 250, 500, 4000)]
    assert rates == [0.01, 0.5, 1.0, 1.0]


def test_samas_video_preset_has_the_published_values():
    paper = sama_vqa.PAPER

    assert (paper.epochs, paper.warm_up_epochs, paper.batch, paper.drop_last) == (30, 2.5, 12, True)
    assert (paper.variant, paper.perturbed_scores) == ("sama", "released")


def test_simple_vqas_presets_have_the_published_values_and_quirks(tmp_path):
    paper = simple_vqa.PAPER

    assert (paper.epochs, paper.batch, paper.learning_rate, paper.weight_decay) == (
        10,
        8,
        1e-5,
        1e-7,
    )
    assert (paper.loss, paper.batch_statistics, paper.logistic_fit, paper.ema) == (
        "released",
        "released",
        True,
        0.0,
    )
    assert simple_vqa.SimpleVqa().loss == "fixed"
    assert simple_vqa.SimpleVqa().batch_statistics == "fixed"
    assert (paper.logistic_start, simple_vqa.SimpleVqa().logistic_start) == ("released", "fixed")


@pytest.mark.parametrize(("loss", "has_rank_gradient"), [("fixed", True), ("released", False)])
def test_simple_vqas_released_loss_has_no_rank_gradient(tiny_simple, loss, has_rank_gradient):
    task = simple_vqa.task(replace(tiny_simple, loss=loss))
    predicted = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    target = torch.tensor([3.2, 2.9, 2.6])

    task.loss(predicted, target).backward()

    l1 = torch.sign(predicted.detach() - target) / 3
    assert predicted.grad.allclose(l1) != has_rank_gradient


@pytest.mark.parametrize(("statistics", "updates"), [("fixed", 1), ("released", 2)])
def test_simple_vqas_batch_statistics_move_once_or_twice_a_step(
    tiny_simple, tmp_path, statistics, updates
):
    settings = replace(tiny_simple, batch_statistics=statistics, epochs=1, output=tmp_path)

    split = run(simple_vqa, settings)

    saved = torch.load(tmp_path / "split-0" / "last.pt", weights_only=True)["parts"]["model"]
    counts = {int(value) for name, value in saved.items() if name.endswith("batches_tracked")}
    assert counts == {updates * split["steps"]}


def test_missing_features_are_told_before_anything_is_built(few_videos, tmp_path):
    settings = replace(simple_vqa.PAPER, **few_videos, features=tmp_path / "none", device="cpu")

    with pytest.raises(FeatureError, match=r"none: expected features made by simple_vqa_features"):
        run_script(settings, simple_vqa.task(settings))


@pytest.fixture
def tiny_simple(few_videos, tmp_path_factory):
    features = tmp_path_factory.getbasetemp() / "features"
    return replace(simple_vqa.PRESETS["tiny"][1], **few_videos, features=features)
