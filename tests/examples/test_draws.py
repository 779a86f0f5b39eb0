"""Which samples a batch holds, and their random numbers, depend on seed, epoch and sample only."""

from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vqa.training.loader import Draw, draws_in_order, training_draws


@given(st.integers(2, 40), st.integers(2, 8), st.integers(0, 5))
def test_an_epoch_draws_every_sample_once_but_for_a_batch_of_one(samples, batch, epoch):
    draws = training_draws(samples, batch, 0, epoch)

    drawn = [draw.index for draw in chain.from_iterable(draws)]

    assert len(set(drawn)) == len(drawn) == samples - (samples % batch == 1)


def test_epochs_differ_in_order_and_in_the_random_numbers_of_a_sample():
    epochs = [training_draws(8, 8, 0, epoch)[0] for epoch in (0, 1, 0)]

    assert epochs[0] == epochs[2]
    assert [d.index for d in epochs[0]] != [d.index for d in epochs[1]]
    assert {d.seed for d in epochs[0]}.isdisjoint(d.seed for d in epochs[1])
    assert len({d.seed for d in epochs[0]}) == 8


@given(st.integers(4, 30), st.sampled_from([2, 4]))
def test_processes_share_the_batches_of_one(samples, processes):
    one = training_draws(samples, 4, seed=3)
    shares = [training_draws(samples, 4, 3, 0, rank, processes) for rank in range(processes)]

    batches = [list(chain.from_iterable(own)) for own in zip(*shares, strict=True)]

    assert all(own for share in shares for own in share)
    for whole, together in zip(one, batches, strict=False):
        assert sorted(d.index for d in whole) == sorted(d.index for d in together)


def test_a_last_batch_that_is_not_full_can_be_left_out():
    assert [len(b) for b in training_draws(10, 4, seed=0)] == [4, 4, 2]
    assert [len(b) for b in training_draws(10, 4, seed=0, drop_last=True)] == [4, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 1, "batch": 4}, "samples: expected at least one batch of 4, got 1"),
        ({"samples": 8, "batch": 3, "processes": 2}, "batch: expected a multiple of 2"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        training_draws(seed=0, **arguments)


def test_a_draw_has_a_generator_of_its_own_and_a_test_draw_none():
    first, second = (torch.rand(3, generator=Draw(0, seed=5).generator()) for _ in range(2))

    assert first.equal(second)
    assert Draw(0).generator() is None


def test_the_processes_test_every_sample_once():
    drawn = [
        draw.index for rank in range(3) for (draw,) in draws_in_order(7, rank=rank, processes=3)
    ]

    assert sorted(drawn) == list(range(7))
