"""The training loop drives any optimizer with a closure, reproducibly."""

import copy

import pytest
import torch
from torch import Tensor, nn

from vqa.demo.training import TrainingSettings, adamw, train
from vqa.models import build_model
from vqa.sampling.tiny_fast_vqa import FragmentSampling, PlaneClips
from vqa.training.losses import quality_loss
from vqa.training.perturbation import Method, perturbed

SAMPLING = FragmentSampling(grid=2, patch=8, frames=2)
SETTINGS = TrainingSettings(steps=3, batch=4)
METHODS: list[Method] = ["plain", "rwp", "awp", "awp-previous"]


def labelled_planes() -> PlaneClips:
    generator = torch.Generator().manual_seed(0)
    scores = torch.linspace(1, 5, 8)
    # The worse the score, the finer the noise: something to learn.
    fine = torch.randn(8, 3, 4, 24, 24, generator=generator)
    coarse = fine[..., ::4, ::4].repeat_interleave(4, dim=-1).repeat_interleave(4, dim=-2)
    share = (scores / 5).view(-1, 1, 1, 1, 1)
    return PlaneClips(share * coarse + (1 - share) * fine, scores)


def trained(method: Method, gamma: float, settings: TrainingSettings = SETTINGS) -> list[Tensor]:
    torch.manual_seed(0)
    model = build_model("tiny_fast_vqa", width=4)
    optimizer = perturbed(adamw(model, settings), method, gamma, seed=0)
    train(model, optimizer, labelled_planes(), SAMPLING, settings, torch.Generator().manual_seed(0))
    return [parameter.detach() for parameter in model.parameters()]


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(a.equal(b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_training_is_reproducible(method):
    assert equal(trained(method, 0.01), trained(method, 0.01))


@pytest.mark.parametrize("method", METHODS[1:])
def test_methods_differ_from_plain_by_the_perturbation_only(method):
    plain = trained("plain", 0.01)

    assert equal(trained(method, 0.0), plain)
    assert not equal(trained(method, 0.01), plain)


def test_training_makes_the_loss_smaller():
    torch.manual_seed(1)
    model, clips = build_model("tiny_fast_vqa", width=8), labelled_planes()
    fragments = clips.planes[:, :, :2, :16, :16]
    before = quality_loss(model(fragments), clips.scores).item()
    settings = TrainingSettings(steps=80, batch=8)

    generator = torch.Generator().manual_seed(0)
    train(model, adamw(model, settings), clips, SAMPLING, settings, generator)

    assert quality_loss(model(fragments), clips.scores).item() < 0.5 * before


def test_one_step_is_one_step_of_the_optimizer_on_the_loss():
    settings = TrainingSettings(steps=1, batch=8, warm_up=1.0)
    model = build_model("tiny_fast_vqa", width=4)
    twin = copy.deepcopy(model)
    still = PlaneClips(
        labelled_planes().planes[..., :1, :1].expand(-1, -1, -1, 24, 24), torch.rand(8)
    )

    train(
        model, adamw(model, settings), still, SAMPLING, settings, torch.Generator().manual_seed(3)
    )

    order = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    # Every patch of a flat clip is the same, and only the start frame (0 or none left) is drawn.
    fragments = still.planes[order][:, :, [0, 2], :16, :16].float()
    optimizer = adamw(twin, settings)
    quality_loss(twin(fragments), still.scores[order], settings.rank_weight).backward()
    optimizer.step()
    # The loss does not see the last bias: its gradient is rounding, which AdamW makes large.
    expected = {name: p for name, p in twin.named_parameters() if name != "head.2.bias"}
    measured = {name: p for name, p in model.named_parameters() if name != "head.2.bias"}
    torch.testing.assert_close(measured, expected)


def test_every_step_is_timed_and_announced():
    model, steps = build_model("tiny_fast_vqa", width=4), []
    generator = torch.Generator().manual_seed(0)

    seconds = train(
        model,
        adamw(model, SETTINGS),
        labelled_planes(),
        SAMPLING,
        SETTINGS,
        generator,
        lambda: steps.append(None),
    )

    assert len(seconds) == len(steps) == 3
    assert min(seconds) > 0


def test_models_stay_in_training_mode_while_trained():
    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))
            self.modes: list[bool] = []

        def forward(self, fragments: Tensor) -> Tensor:
            self.modes.append(self.training)
            return self.weight * fragments.std(dim=(1, 2, 3, 4))

    model = Watching().eval()
    generator = torch.Generator().manual_seed(0)
    train(model, adamw(model, SETTINGS), labelled_planes(), SAMPLING, SETTINGS, generator)

    assert model.modes == [True] * 3
