"""Learning-rate multipliers against the published ones, and what the mended ones mend."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vqa.training.optim import published_cosine, step_decay, warm_up_constant, warm_up_cosine

PUBLISHED = np.load(Path(__file__).parents[1] / "data" / "lr_schedules.npz")
STEPS_PER_EPOCH = 100
STEPS = PUBLISHED["iters"].tolist()


def test_cosine_of_fast_vqa_and_sama_is_the_published_one():
    found = [published_cosine(step, 30 * STEPS_PER_EPOCH, 250) for step in STEPS]

    np.testing.assert_allclose(found, PUBLISHED["fast_sama_train_L100"], rtol=0, atol=1e-12)


def test_warm_up_of_sama_for_images_is_the_published_one():
    found = [warm_up_constant(step, 5 * STEPS_PER_EPOCH) for step in STEPS]

    np.testing.assert_allclose(found, PUBLISHED["iqa_L100_warm5"], rtol=0, atol=1e-12)


def test_decay_of_simple_vqa_is_the_published_one():
    found = [1e-5 * step_decay(epoch) for epoch in range(10)]

    np.testing.assert_allclose(found, PUBLISHED["simplevqa_lr_epoch_start"], rtol=1e-12)


@pytest.mark.parametrize("factor", [0.9, 0.95])
def test_step_decay_is_that_of_torch(factor):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=factor)
    for epoch in range(7):
        assert step_decay(epoch, factor) == pytest.approx(schedule.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        schedule.step()


def test_the_published_cosine_neither_starts_nor_ends_where_it_should():
    assert published_cosine(0, 1000, 100) == 0
    assert published_cosine(999, 1000, 100) > 0.02


@given(st.integers(2, 500), st.floats(0, 0.9))
def test_the_mended_cosine_rises_from_the_first_step_and_falls_to_nothing(steps, share):
    warm_up = int(share * steps)
    rates = [warm_up_cosine(step, steps, warm_up) for step in range(steps + 1)]

    assert rates[0] > 0
    assert max(rates) == 1
    assert rates[: warm_up + 1] == sorted(rates[: warm_up + 1])
    assert rates[warm_up:] == sorted(rates[warm_up:], reverse=True)
    assert rates[-1] == 0


@pytest.mark.parametrize("schedule", [published_cosine, warm_up_cosine])
def test_no_warm_up_begins_at_the_full_rate(schedule):
    assert schedule(0, 10, 0) == 1
    assert warm_up_constant(0, 0) == 1
