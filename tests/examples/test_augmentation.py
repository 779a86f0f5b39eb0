"""Augmentation of whole frames: one draw per clip, from the sample's own generator."""

import pytest
import torch

from vqa.sampling.augmentation import draw_augmentation

KINDS = ["auto", "rand", "trivial"]


def moving_frames(frames: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    texture = torch.randint(256, (3, 24, 32), dtype=torch.uint8, generator=generator)
    return torch.stack([texture.roll(shift, -1) for shift in range(frames)])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_frames_stay_equal(kind):
    still = moving_frames(1).expand(4, -1, -1, -1)

    for seed in range(20):
        augmented = draw_augmentation(kind, seeded(seed))(still)
        assert augmented.equal(augmented[:1].expand_as(augmented))


@pytest.mark.parametrize("kind", KINDS)
def test_draws_differ_from_clip_to_clip(kind):
    generator = seeded(0)
    draws = [draw_augmentation(kind, generator)(moving_frames()) for _ in range(20)]

    assert len({tuple(draw.flatten().tolist()) for draw in draws}) > 10
    assert all(draw.dtype == torch.uint8 and draw.shape == (3, 3, 24, 32) for draw in draws)


@pytest.mark.parametrize("kind", KINDS)
def test_the_generator_alone_decides_and_the_global_one_is_left_alone(kind):
    def draw(global_seed):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        augmented = draw_augmentation(kind, seeded(3))(moving_frames())
        assert torch.get_rng_state().equal(before)
        return augmented

    assert draw(1).equal(draw(2))


def test_none_changes_nothing():
    assert draw_augmentation("none", seeded(0))(moving_frames()).equal(moving_frames())


def test_frames_of_another_type_are_refused():
    with pytest.raises(ValueError, match=r"frames: expected uint8, got torch\.float32"):
        draw_augmentation("auto", seeded(0))(moving_frames().float())


def test_an_unknown_augmentation_is_refused():
    with pytest.raises(ValueError, match="augmentation: expected one of none, "):
        draw_augmentation("mix", seeded(0))(moving_frames())


@pytest.mark.parametrize("kind", ["auto", "rand", "trivial"])
def test_frames_may_come_one_by_one(kind):
    frames = moving_frames()

    for seed in range(10):
        change = draw_augmentation(kind, seeded(seed))
        one_by_one = torch.cat([change(frame[None]) for frame in frames])

        assert one_by_one.equal(draw_augmentation(kind, seeded(seed))(frames))
