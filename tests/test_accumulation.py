"""Gradients accumulated over micro-batches: the same as one big batch, in every form."""

import copy
from collections.abc import Callable

import pytest
import torch
from reference import batch, closure_for, loss_of, one_step, small_net, weights_of
from torch import Tensor, nn

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation

WRAPS = {
    "awp": lambda base: AdversarialWeightPerturbation(base, 0.1),
    "awp-3-steps": lambda base: AdversarialWeightPerturbation(base, 0.1, steps=3, step_size=0.07),
    "awp-interval": lambda base: AdversarialWeightPerturbation(base, 0.1, interval=2),
    "awp-update": lambda base: AdversarialWeightPerturbation(base, 0.1, ascent="update"),
    "rwp": lambda base: RandomWeightPerturbation(
        base, 0.1, generator=torch.Generator().manual_seed(5)
    ),
}
PIECES = 3


def accumulating(model: nn.Module, data: tuple[Tensor, Tensor]) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        model.zero_grad()
        total = torch.zeros(())
        for inputs, targets in zip(data[0].chunk(PIECES), data[1].chunk(PIECES), strict=True):
            loss = loss_of(model, (inputs, targets)) / PIECES
            loss.backward()
            total = total + loss.detach()
        return total

    return closure


def train(optimizer, closure: Callable[[], Tensor], form: str) -> None:
    for _ in range(4):
        one_step(optimizer, closure, form)


@pytest.mark.parametrize("form", ["closure", "loop", "block"])
@pytest.mark.parametrize("wrap", WRAPS)
def test_pieces_give_the_weights_of_the_whole_batch(wrap, form):
    model, data = small_net(), batch()
    whole = copy.deepcopy(model)
    for module, make in [(model, accumulating), (whole, closure_for)]:
        base = torch.optim.AdamW(module.parameters(), lr=0.01)
        train(WRAPS[wrap](base), make(module, data), form)
    torch.testing.assert_close(weights_of(model), weights_of(whole), rtol=1e-9, atol=1e-11)


def test_a_loss_that_is_not_divided_by_the_pieces_climbs_to_the_same_place():
    model, data = small_net(), batch()
    optimizer = WRAPS["awp"](torch.optim.SGD(model.parameters(), lr=0.1))
    places = []
    for divisor in (1, PIECES):
        model.zero_grad()
        for inputs, targets in zip(data[0].chunk(PIECES), data[1].chunk(PIECES), strict=True):
            (loss_of(model, (inputs, targets)) / divisor).backward()
        with optimizer.perturb():
            places.append(weights_of(model))
    torch.testing.assert_close(*places)


def forgetful(model: nn.Module, data: tuple[Tensor, Tensor]) -> Callable[[], Tensor]:
    """What a trainer may hand over for the last micro-batch: a closure that clears nothing."""

    def closure() -> Tensor:
        loss = loss_of(model, data)
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_closure_that_adds_to_older_gradients_is_an_error(wrap):
    model, data = small_net(), batch()
    optimizer = WRAPS[wrap](torch.optim.SGD(model.parameters(), lr=0.1))
    before = weights_of(model)
    loss_of(model, data).backward()
    with pytest.raises(RuntimeError, match="added to older gradients"):
        optimizer.step(forgetful(model, data))
    assert all(map(torch.equal, weights_of(model), before))


def test_adding_to_the_gradient_of_the_ascent_is_an_error():
    model, data = small_net(), batch()
    optimizer = WRAPS["awp"](torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(RuntimeError, match="added to older gradients"):
        optimizer.step(forgetful(model, data))


CLEARING = {
    "to None": lambda model: model.zero_grad(),
    "in place": lambda model: model.zero_grad(set_to_none=False),
    "by hand": lambda model: [p.grad.detach_().zero_() for p in model.parameters()],
    "through .data": lambda model: [p.grad.data.zero_() for p in model.parameters()],
    "by deletion": lambda model: [delattr(p, "grad") for p in model.parameters()],
}


@pytest.mark.parametrize("way", CLEARING)
@pytest.mark.parametrize("wrap", WRAPS)
def test_closures_may_clear_gradients_in_any_way(wrap, way):
    model, data = small_net(), batch()
    twin = copy.deepcopy(model)
    for module in (model, twin):
        loss_of(module, data).backward()
    add = forgetful(model, data)

    def closure() -> Tensor:
        CLEARING[way](model)
        return add()

    train(WRAPS[wrap](torch.optim.SGD(model.parameters(), lr=0.1)), closure, "closure")
    reference = WRAPS[wrap](torch.optim.SGD(twin.parameters(), lr=0.1))
    train(reference, closure_for(twin, data), "closure")
    torch.testing.assert_close(weights_of(model), weights_of(twin))


@pytest.mark.parametrize("wrap", WRAPS)
def test_closures_may_assign_gradients_that_they_computed_apart(wrap):
    model, data = small_net(), batch()
    twin = copy.deepcopy(model)

    def closure() -> Tensor:
        loss = loss_of(model, data)
        params = list(model.parameters())
        for param, gradient in zip(params, torch.autograd.grad(loss, params), strict=True):
            param.grad = gradient
        return loss

    train(WRAPS[wrap](torch.optim.SGD(model.parameters(), lr=0.1)), closure, "closure")
    reference = WRAPS[wrap](torch.optim.SGD(twin.parameters(), lr=0.1))
    train(reference, closure_for(twin, data), "closure")
    torch.testing.assert_close(weights_of(model), weights_of(twin))


@pytest.mark.parametrize("wrap", ["rwp"])
def test_a_single_pass_may_follow_gradients_cleared_in_place(wrap):
    model, data = small_net(), batch()
    optimizer = WRAPS[wrap](torch.optim.SGD(model.parameters(), lr=0.1))
    for _ in range(3):
        optimizer.step(forgetful(model, data))
        optimizer.zero_grad(set_to_none=False)


def test_steps_that_do_not_perturb_take_any_closure():
    model, data = small_net(), batch()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = AdversarialWeightPerturbation(base, 0.1, start_step=2)
    loss_of(model, data).backward()
    gradient = model[0].weight.grad.clone()
    optimizer.step(forgetful(model, data))
    torch.testing.assert_close(model[0].weight.grad, 2 * gradient)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_closures_that_clear_cost_no_look_at_a_value(set_to_none):
    """Tensors of the meta device have no values: whatever looks at one fails."""
    model = small_net().to("meta")
    data = tuple(t.to("meta") for t in batch())
    optimizer = WRAPS["awp"](torch.optim.SGD(model.parameters(), lr=0.1))

    def closure() -> Tensor:
        model.zero_grad(set_to_none=set_to_none)
        loss = loss_of(model, data)
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)


def test_closures_may_penalise_gradients_before_they_clear_them():
    model, data = small_net(), batch()
    optimizer = WRAPS["awp"](torch.optim.SGD(model.parameters(), lr=0.1))

    def closure() -> Tensor:
        loss = loss_of(model, data)
        gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        loss = loss + 0.1 * sum(gradient.square().sum() for gradient in gradients)
        optimizer.zero_grad()
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
