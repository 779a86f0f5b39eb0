"""The closure form and the block form: what is called, returned, refused and left behind."""

import copy
import gc
import weakref

import pytest
import torch
from reference import batch, closure_for, loss_of, same_bits, small_net, weights_of
from torch import nn

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation


def awp(model: nn.Module, **kwargs: object) -> AdversarialWeightPerturbation:
    return AdversarialWeightPerturbation(torch.optim.SGD(model.parameters(), lr=0.1), 0.1, **kwargs)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_awp_calls_the_closure_steps_plus_one_times_and_returns_the_clean_loss(steps):
    model, data, losses = small_net(), batch(), []
    clean = loss_of(model, data).item()
    loss = awp(model, steps=steps).step(closure_for(model, data, losses))
    assert len(losses) == steps + 1
    assert loss.item() == losses[0] == clean
    assert losses == sorted(losses)  # every ascent step climbs


@pytest.mark.parametrize(
    "wrap",
    [
        lambda base: RandomWeightPerturbation(base, 0.1),
    ],
)
def test_single_pass_modes_call_the_closure_once_and_return_its_loss(wrap):
    model, data, losses = small_net(), batch(), []
    optimizer = wrap(torch.optim.SGD(model.parameters(), lr=0.1))
    for _ in range(3):
        loss = optimizer.step(closure_for(model, data, losses))
        assert loss.item() == losses[-1]
    assert len(losses) == 3


@pytest.mark.parametrize("steps", [1, 3])
def test_block_and_closure_end_at_the_same_weights(steps):
    model, data = small_net(), batch()
    twin = copy.deepcopy(model)
    by_closure, by_block = awp(model, steps=steps), awp(twin, steps=steps)
    for _ in range(3):
        by_closure.step(closure_for(model, data))
        closure_for(twin, data)()
        with by_block.perturb():
            for _ in range(steps - 1):
                closure_for(twin, data)()
                by_block.ascend()
            closure_for(twin, data)()
        by_block.step()
    assert same_bits(weights_of(model), weights_of(twin))


def test_step_without_a_closure_is_the_bases_step():
    model, data = small_net(), batch()
    twin = copy.deepcopy(model)
    optimizer, plain = awp(model), torch.optim.SGD(twin.parameters(), lr=0.1)
    for module in (model, twin):
        closure_for(module, data)()
    with pytest.warns(UserWarning, match="unperturbed weights"):
        optimizer.step()
    plain.step()
    assert same_bits(weights_of(model), weights_of(twin))


def test_two_blocks_before_one_step_accumulate():
    model, data = small_net(), batch()
    optimizer = awp(model)
    loss_of(model, data).backward()
    ascent = [p.grad.clone() for p in model.parameters()]
    with optimizer.perturb():
        optimizer.zero_grad()
        loss_of(model, data).backward()
    once = [p.grad.clone() for p in model.parameters()]
    for param, gradient in zip(model.parameters(), ascent, strict=True):
        param.grad = gradient
    with optimizer.perturb():
        for param, gradient in zip(model.parameters(), once, strict=True):
            param.grad = gradient.clone()
        loss_of(model, data).backward()
    for param, gradient in zip(model.parameters(), once, strict=True):
        torch.testing.assert_close(param.grad, 2 * gradient)


@pytest.mark.parametrize("call", ["step", "perturb", "state_dict"])
def test_refused_inside_the_block(call):
    model, data = small_net(), batch()
    optimizer = awp(model)
    loss_of(model, data).backward()
    before = weights_of(model)
    with optimizer.perturb():
        with pytest.raises(RuntimeError, match=rf"{call}\(\) inside a perturb\(\) block"):
            getattr(optimizer, call)()
        assert not same_bits(weights_of(model), before)
    assert same_bits(weights_of(model), before)


def test_a_second_block_opened_beforehand_is_refused_inside_the_first():
    model = small_net()
    loss_of(model, batch()).backward()
    optimizer = awp(model)
    first, second = optimizer.perturb(), optimizer.perturb()
    with first, pytest.raises(RuntimeError, match="inside a perturb"), second:
        pass


def test_step_with_a_closure_that_steps_is_refused():
    model, data = small_net(), batch()
    optimizer = awp(model)

    def closure():
        loss = closure_for(model, data)()
        with optimizer.perturb():
            return loss

    with pytest.raises(RuntimeError, match=r"inside a loop over passes\(\)"):
        optimizer.step(closure)


def test_ascend_outside_a_block_is_refused():
    with pytest.raises(RuntimeError, match=r"ascend\(\) outside a perturb\(\) block"):
        awp(small_net()).ascend()


def test_no_autograd_graph_survives():
    model, data = small_net(), batch()
    optimizer = awp(model)
    graphs = []

    def closure():
        loss = closure_for(model, data)()
        graphs.append(weakref.ref(loss))
        return loss

    returned = optimizer.step(closure)
    assert returned is graphs[0]()
    del returned
    gc.collect()
    assert [graph() for graph in graphs] == [None, None]


def test_gradients_are_enabled_in_the_closure_even_under_no_grad():
    model, data = small_net(), batch()
    before = weights_of(model)
    with torch.no_grad():
        awp(model).step(closure_for(model, data))
    assert not same_bits(weights_of(model), before)


def test_gradient_clipping_sees_the_gradients_the_base_uses():
    model, data = small_net(), batch()
    optimizer = awp(model)
    closure_for(model, data)()
    with optimizer.perturb():
        closure_for(model, data)()
    before = weights_of(model)
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    optimizer.step()
    moved = torch.cat([(p - w).flatten() for p, w in zip(model.parameters(), before, strict=True)])
    torch.testing.assert_close(moved.norm().item(), 0.1 * 1e-3, rtol=1e-4, atol=0)
