"""However a measurement ends, the model is bit for bit what it was."""

import pytest
import torch
from landscape_models import Residual, image_loss, noise
from reference import bits
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils._pytree import tree_map_only

from torch_awp.landscape import loss_curve, loss_surface, sharpness

ALPHAS = [-1.0, 0.0, 1.0]
MEASUREMENTS = {
    "curve": lambda model, loss_fn: loss_curve(model, loss_fn, noise(model), ALPHAS),
    "surface": lambda model, loss_fn: loss_surface(
        model, loss_fn, (noise(model, 0), noise(model, 1)), ALPHAS, [0.0]
    ),
    "worst": lambda model, loss_fn: sharpness(model, loss_fn, 0.1, steps=2),
    "worst element": lambda model, loss_fn: sharpness(
        model, loss_fn, 0.1, steps=2, constraint="element"
    ),
    "average": lambda model, loss_fn: sharpness(model, loss_fn, 0.1, mode="average", samples=2),
}


def used_model():
    """Different modes, frozen tensors, gradients and awkward bits."""
    model = Residual(dropout=0.5)
    image_loss(model).backward()
    model.block.eval()
    model.stem[0].weight.requires_grad_(False)
    with torch.no_grad():
        tiny = torch.finfo(torch.float64).tiny
        model.head.bias.copy_(torch.tensor([-0.0, 0.0, tiny, tiny / 4, -1.0]))
        model.stem[1].running_mean[0] = -0.0
    return model


def everything(model):
    """All that a measurement could leave changed: values, places and flags."""
    params = dict(model.named_parameters())
    return {
        "parameters": {n: (id(p), p.data_ptr(), bits(p)) for n, p in params.items()},
        "gradients": {
            n: (id(p.grad), bits(p.grad)) for n, p in params.items() if p.grad is not None
        },
        "requires_grad": {n: p.requires_grad for n, p in params.items()},
        "buffers": {n: (id(b), b.data_ptr(), bits(b)) for n, b in model.named_buffers()},
        "modes": {n: (m.training, getattr(m, "momentum", 0)) for n, m in model.named_modules()},
        "random state": bits(torch.get_rng_state()),
    }


def meddling_loss(model):
    """Changes what a loss can get hold of, and draws random numbers."""
    model.zero_grad(set_to_none=False)
    for module in model.modules():
        module.train(not module.training)
    model.head.bias.requires_grad_(False)
    model.stem[1].running_var = model.stem[1].running_var + 1
    model.block[1].running_mean.fill_(3.0)
    torch.randn(7)
    return image_loss(model)


@pytest.mark.parametrize("loss_fn", [image_loss, meddling_loss])
@pytest.mark.parametrize("measure", MEASUREMENTS.values(), ids=MEASUREMENTS)
def test_after_a_measurement(measure, loss_fn):
    model = used_model()
    before, visited = everything(model), set()

    def watched_loss(model):
        visited.add(bits(model.head.weight))
        return loss_fn(model)

    measure(model, watched_loss)
    assert everything(model) == before
    assert len(visited) == 3  # it did move


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("failing_call", [1, 2, 3])
@pytest.mark.parametrize("measure", MEASUREMENTS.values(), ids=MEASUREMENTS)
def test_after_an_exception(measure, failing_call, error):
    model = used_model()
    before, calls = everything(model), []

    def failing_loss(model):
        calls.append(None)
        loss = meddling_loss(model)
        if len(calls) == failing_call:
            raise error
        return loss

    with pytest.raises(error):
        measure(model, failing_loss)
    assert everything(model) == before


@pytest.mark.parametrize("measure", MEASUREMENTS.values(), ids=MEASUREMENTS)
def test_after_a_second_interrupt_while_restoring(measure, monkeypatch):
    model = used_model()
    before, calls, copy = everything(model), [], torch._foreach_copy_

    def interrupted_once(*args):
        monkeypatch.setattr(torch, "_foreach_copy_", copy)
        raise KeyboardInterrupt

    def failing_loss(model):
        calls.append(None)
        if len(calls) == 2:
            monkeypatch.setattr(torch, "_foreach_copy_", interrupted_once)
            raise ValueError
        return meddling_loss(model)

    with pytest.raises(KeyboardInterrupt):
        measure(model, failing_loss)
    assert everything(model) == before


def test_after_an_interrupted_recalibration():
    model = used_model()
    before = everything(model)

    def batches():
        yield torch.randn(4, 3, 8, 8, dtype=torch.float64)
        raise KeyboardInterrupt

    def loss_fn(model):
        update_bn(batches(), model)

    with pytest.raises(KeyboardInterrupt):
        loss_curve(model, loss_fn, noise(model), ALPHAS)
    assert everything(model) == before


def test_an_expanded_buffer_is_left_alone():
    model = nn.Linear(2, 1)
    model.register_buffer("shared", torch.zeros(1).expand(3))
    curve = loss_curve(model, lambda m: m.weight.sum(), {"weight": torch.ones(1, 2)}, [0.0, 1.0])
    torch.testing.assert_close(curve[1] - curve[0], torch.tensor(2.0))


class Elsewhere(torch.Tensor):
    """Says that it lies on a device that ``torch`` has no module for; computes on the CPU."""

    @staticmethod
    def __new__(cls, values):
        return torch.Tensor._make_wrapper_subclass(
            cls, values.shape, dtype=values.dtype, device="xla"
        )

    def __init__(self, values):
        self.values_on_cpu = values

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        args, kwargs = tree_map_only(cls, lambda t: t.values_on_cpu, (args, kwargs or {}))
        return tree_map_only(torch.Tensor, cls, function(*args, **kwargs))


@pytest.mark.parametrize("measure", MEASUREMENTS.values(), ids=MEASUREMENTS)
def test_a_random_state_out_of_reach_is_a_warning(measure):
    model = Residual()
    model.register_buffer("calls", Elsewhere(torch.zeros(1)))
    counts = []

    def counting_loss(model):
        model.calls.add_(1)
        counts.append(model.calls.values_on_cpu.item())
        return image_loss(model)

    with pytest.warns(UserWarning, match="cannot restore the random state of 'xla'.* eval mode"):
        measure(model, counting_loss)
    assert counts == [1, 1, 1]
    assert model.calls.values_on_cpu == 0
