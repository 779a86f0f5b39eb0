"""One run: comparable over methods, measured on all parts, kept on disk."""

from dataclasses import replace

import pytest
import torch

from vqa.demo.checkpoints import Checkpoint, load_model
from vqa.demo.evaluation import evaluate, predict
from vqa.demo.experiment import ExperimentSettings, Gammas, Run, run_method
from vqa.demo.run_store import RunStore
from vqa.demo.training import TrainingSettings
from vqa.models import build_model
from vqa.sampling.tiny_fast_vqa import FragmentSampling, PlaneClips, fixed_views
from vqa.training.landscape import LandscapeSettings, curve_positions
from vqa.training.perturbation import METHOD_NAMES

SETTINGS = ExperimentSettings(
    width=4,
    gammas=Gammas(rwp=0.05, awp=0.05, awp_previous=0.05),
    views=2,
    sampling=FragmentSampling(grid=2, patch=8, frames=2),
    training=TrainingSettings(steps=3, batch=4),
    landscape=LandscapeSettings(points=3),
)


def part(seed: int) -> PlaneClips:
    generator = torch.Generator().manual_seed(seed)
    planes = torch.randn(6, 3, 5, 24, 24, generator=generator).half()
    return PlaneClips(planes, torch.rand(6, generator=generator) * 4 + 1)


PARTS = {"train": part(0), "test": part(1), "ood": part(2)}


@pytest.fixture(scope="module")
def finished() -> tuple[Run, Checkpoint]:
    return run_method("awp", 0, SETTINGS, PARTS)


@pytest.fixture(scope="module")
def run(finished) -> Run:
    return finished[0]


def run_of(method, seed=0, settings=SETTINGS) -> Run:
    return run_method(method, seed, settings, PARTS)[0]


def without_time(run: Run) -> Run:
    return replace(run, seconds_per_step=0.0)


def test_every_method_has_its_own_gamma():
    gammas = Gammas(rwp=0.1, awp=0.2, awp_update=0.3, awp_previous=0.4)

    assert [gammas.of(method) for method in METHOD_NAMES] == [0.0, 0.1, 0.2, 0.3, 0.4]


def test_gap_is_train_minus_test(run):
    assert run.gap.srcc == run.train.srcc - run.test.srcc
    assert run.gap.plcc == run.train.plcc - run.test.plcc


def test_a_run_is_reproducible(run):
    assert without_time(run_of("awp")) == without_time(run)


def test_another_seed_is_another_run(finished):
    weights = finished[1].weights
    others = run_method("awp", 1, SETTINGS, PARTS)[1].weights

    assert not all(others[name].equal(weight) for name, weight in weights.items())


@pytest.mark.parametrize("method", ["rwp", "awp", "awp-update", "awp-previous"])
def test_methods_are_paired_so_that_without_perturbation_they_agree(method):
    still = replace(SETTINGS, gammas=Gammas(0.0, 0.0, 0.0, 0.0))
    plain = run_of("plain", settings=still)

    same = replace(run_of(method, settings=still), method="plain")
    assert without_time(same) == without_time(plain)


def test_the_loss_curve_goes_through_the_trained_weights(run):
    assert curve_positions(SETTINGS.landscape).tolist() == [-0.5, 0.0, 0.5]
    assert len(run.curve) == 3


def test_sharpness_is_a_rise(run):
    assert run.sharpness > 0
    wider = replace(SETTINGS, landscape=LandscapeSettings(radius=0.2, points=3))
    assert run_of("awp", settings=wider).sharpness > run.sharpness


def test_a_clips_score_is_the_mean_over_its_views():
    model = build_model("tiny_fast_vqa", width=4)
    views = fixed_views(PARTS["test"], SETTINGS.sampling, views=3, seed=0)

    scores = predict(model, views)

    torch.testing.assert_close(scores, sum(model(view) for view in views).detach() / 3)
    assert evaluate(model, views, scores).srcc == pytest.approx(1.0)
    assert model.training


def test_the_checkpoint_is_the_trained_model(finished, tmp_path):
    run, checkpoint = finished
    store = RunStore(tmp_path, {})
    store.save(run, checkpoint)

    model, _ = load_model(store.checkpoint("awp", 0))

    views = fixed_views(PARTS["test"], SETTINGS.sampling, SETTINGS.views, seed=0)
    assert evaluate(model, views, PARTS["test"].scores).srcc == run.test.srcc


def test_the_checkpoint_says_how_the_model_was_trained(finished):
    _, checkpoint = finished

    assert (checkpoint.method, checkpoint.seed, checkpoint.gamma) == ("awp", 0, 0.05)
    assert checkpoint.model_settings == {"planes": 3, "width": 4}
    assert checkpoint.sampling == SETTINGS.sampling


def test_a_finished_run_is_read_back_as_it_was(finished, tmp_path):
    store = RunStore(tmp_path, {"steps": 3})
    assert store.load("awp", 0) is None

    store.save(*finished)

    assert store.load("awp", 0) == finished[0]
    assert store.load("awp", 1) is None
    assert store.load("plain", 0) is None


def test_runs_of_another_configuration_are_not_picked_up(finished, tmp_path):
    RunStore(tmp_path, {"steps": 3}).save(*finished)

    assert RunStore(tmp_path, {"steps": 4}).load("awp", 0) is None


@pytest.mark.parametrize("pattern", ["*.json", "*.pt"])
def test_a_run_without_result_or_checkpoint_is_not_finished(finished, tmp_path, pattern):
    store = RunStore(tmp_path, {})
    store.save(*finished)
    (file,) = tmp_path.rglob(pattern)

    file.unlink()

    assert store.load("awp", 0) is None
