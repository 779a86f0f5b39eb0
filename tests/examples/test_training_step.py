"""A step evaluates the loss as often as the method asks, with or without a gradient scaler."""

import copy

import pytest
import torch
from torch import nn

from vqa.training.perturbation import METHOD_NAMES, PerturbationRule, perturbed
from vqa.training.step import TrainingStep

PASSES = {"plain": [True], "rwp": [True], "awp": [True, False], "awp-previous": [True]}


def data(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 4, generator=generator), torch.randn(6, 1, generator=generator)


def model_and_optimizer(method, rule=PerturbationRule()):  # noqa: B008
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
    base = torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9)
    return model, perturbed(base, method, 0.05, seed=0, rule=rule)


def objective_of(model, passes=None):
    def objective(batch, clean):
        if passes is not None:
            passes.append(clean)
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    return objective


def trained(method, batches, scaler=None, steps=3, rule=PerturbationRule()):  # noqa: B008
    model, optimizer = model_and_optimizer(method, rule)
    step = TrainingStep(objective_of(model), optimizer, scaler)
    losses = [step(batches) for _ in range(steps)]
    return losses, [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_only_the_first_pass_of_a_step_is_at_the_weights(method):
    model, optimizer = model_and_optimizer(method)
    passes = []

    TrainingStep(objective_of(model, passes), optimizer)([data()])

    assert passes == PASSES[method]


@pytest.mark.parametrize("method", ["plain", "awp"])
def test_the_loss_is_the_one_before_the_step(method):
    model, optimizer = model_and_optimizer(method)
    x, y = data()
    before = nn.functional.mse_loss(model(x), y).detach()

    assert TrainingStep(objective_of(model), optimizer)([(x, y)]).equal(before)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_two_halves_accumulate_to_the_whole_batch(method):
    x, y = data()

    halves = trained(method, [(x[:3], y[:3]), (x[3:], y[3:])])
    whole = trained(method, [(x, y)])

    torch.testing.assert_close(halves, whole)


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("steps", [1, 3])
def test_a_gradient_scaler_changes_nothing_but_the_form(method, steps):
    rule = PerturbationRule(steps=steps)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    scaled = trained(method, [data()], scaler, rule=rule)
    plain = trained(method, [data()], rule=rule)

    torch.testing.assert_close(scaled, plain, rtol=1e-5, atol=1e-6)


def test_an_overflow_skips_the_step_and_leaves_the_weights_alone():
    model, optimizer = model_and_optimizer("awp")
    before = copy.deepcopy(model.state_dict())

    def objective(batch, clean):
        return model(batch[0]).sum() * torch.inf

    scaler = torch.amp.GradScaler("cpu")
    TrainingStep(objective, optimizer, scaler)([data()])

    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert scaler.get_scale() < 65536
