"""Whatever happens, every weight comes back bit for bit, in the same storage."""

import contextlib
import gc
import itertools
import sys
from pathlib import Path
from types import FrameType

import pytest
import torch
from reference import batch, bits, closure_for, loss_of, one_step, same_bits, small_net, weights_of
from torch import nn

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation, perturbation

PACKAGE = Path(perturbation.__file__).parent
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
WRAPPERS = [
    AdversarialWeightPerturbation,
    RandomWeightPerturbation,
    lambda base, gamma: AdversarialWeightPerturbation(base, gamma, constraint="element"),
    lambda base, gamma: AdversarialWeightPerturbation(base, gamma, steps=3),
]


def ready(wrap, dtype):
    """A model with awkward bit patterns, its gradients and its optimizer."""
    model, data = small_net(dtype), batch(dtype)
    with torch.no_grad():
        tiny = torch.finfo(dtype).tiny
        model[0].weight[0] = torch.tensor([-0.0, 0.0, tiny, tiny / 4, -1.0], dtype=dtype)
    optimizer = wrap(torch.optim.SGD(model.parameters(), lr=0.0), 0.1)
    loss_of(model, data).backward()
    return model, data, optimizer


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_after_a_block(wrap, dtype):
    model, _, optimizer = ready(wrap, dtype)
    before, places = weights_of(model), [p.data_ptr() for p in model.parameters()]
    with optimizer.perturb():
        assert not same_bits(list(model.parameters()), before)
    assert same_bits(list(model.parameters()), before)
    assert [p.data_ptr() for p in model.parameters()] == places


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_after_a_step_with_a_closure(wrap, dtype):
    model, data, optimizer = ready(wrap, dtype)
    before, places = weights_of(model), [p.data_ptr() for p in model.parameters()]
    visited = []

    def closure():
        visited.append(bits(model[0].weight))
        return closure_for(model, data)()

    optimizer.step(closure)
    assert visited[-1] != bits(before[0])
    # lr 0: what is left of the step is w + 0 * g, which turns -0.0 into 0.0 and nothing else.
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), before, strict=True))
    assert [p.data_ptr() for p in model.parameters()] == places


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_after_an_exception_in_a_block(wrap, dtype, error):
    model, _, optimizer = ready(wrap, dtype)
    before = weights_of(model)
    with pytest.raises(error), optimizer.perturb():
        raise error
    assert same_bits(list(model.parameters()), before)
    with optimizer.perturb():  # and the optimizer is usable again
        assert not same_bits(list(model.parameters()), before)


@pytest.mark.parametrize("failing_call", [1, 2, 3])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_exception_in_a_closure(error, failing_call):
    model, data = small_net(), batch()
    optimizer = AdversarialWeightPerturbation(torch.optim.AdamW(model.parameters()), 0.1, steps=2)
    before, calls = weights_of(model), []

    def closure():
        calls.append(None)
        if len(calls) == failing_call:
            raise error
        return closure_for(model, data)()

    with pytest.raises(error):
        optimizer.step(closure)
    assert same_bits(list(model.parameters()), before)
    assert optimizer.param_groups[0].get("perturb_step", 0) == 0


@pytest.mark.parametrize(
    ("module", "failing"), [("sharding", "whole_norms"), ("functional", "add_scaled_")]
)
def test_after_an_interrupt_while_moving(module, failing, monkeypatch):
    model, data = small_net(), batch()
    loss_of(model, data).backward()
    before = weights_of(model)
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD(model.parameters(), lr=0.1), 0.1)
    original = getattr(getattr(perturbation, module), failing)

    def interrupted(*args, **kwargs):
        original(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"torch_awp.{module}.{failing}", interrupted)
        with pytest.raises(KeyboardInterrupt), optimizer.perturb():
            pass
    assert same_bits(list(model.parameters()), before)


def test_after_an_interrupt_while_restoring(monkeypatch):
    model = nn.ModuleList([small_net(torch.float64), small_net(torch.float32)])
    before = weights_of(model)
    optimizer = RandomWeightPerturbation(torch.optim.SGD(model.parameters(), lr=0.1), 0.1)
    copy, interrupts = torch._foreach_copy_, []

    def interrupted_once(*args):
        if not interrupts:
            interrupts.append(None)
            raise KeyboardInterrupt
        return copy(*args)

    with pytest.raises(KeyboardInterrupt) as held, optimizer.perturb():
        monkeypatch.setattr(torch, "_foreach_copy_", interrupted_once)
    assert same_bits(list(model.parameters()), before)  # at once, not when it is dropped
    assert held.value.__traceback__


def test_after_an_interrupt_before_leaving_an_update_block(monkeypatch):
    """The block has given up its backups by the time that the perturbation is dropped."""
    model, data = small_net(), batch()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = AdversarialWeightPerturbation(base, 0.1, ascent="update")
    for _ in range(2):
        optimizer.step(closure_for(model, data))
    before, complaints = weights_of(model), []

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sys, "unraisablehook", lambda args: complaints.append(repr(args.exc_value)))
        patch.setattr(perturbation.Perturbation, "__exit__", interrupted)
        with contextlib.suppress(KeyboardInterrupt), optimizer.perturb():
            assert not same_bits(list(model.parameters()), before)
        gc.collect()
    assert same_bits(list(model.parameters()), before)
    assert complaints == []
    optimizer.step(closure_for(model, data))  # and the optimizer is usable again


class Interruption:
    """Ctrl-C as the ``number``-th function of ours is about to run; inside a ``with``."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __enter__(self) -> None:
        sys.settrace(self.trace)

    def __exit__(self, *exception: object) -> None:
        sys.settrace(None)

    def trace(self, frame: FrameType, event: str, _: object) -> None:
        ours = Path(frame.f_code.co_filename).parent == PACKAGE
        if sys.version_info < (3, 11) and frame.f_lasti >= 0:
            return  # a generator goes on: unlike Ctrl-C, what a trace raises skips its `finally`
        self.left -= ours
        if ours and self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning",  # while Python ends a generator
)
@pytest.mark.parametrize("form", ["loop", "block", "closure"])
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_after_an_interrupt_anywhere_in_a_step(wrap, form):
    model, data = small_net(), batch()
    optimizer = wrap(torch.optim.SGD(model.parameters(), lr=0.0), 0.1)
    before = weights_of(model)
    for number in itertools.count(1):
        interruption = Interruption(number)
        with contextlib.suppress(KeyboardInterrupt), interruption:
            one_step(optimizer, closure_for(model, data), form)
        assert same_bits(list(model.parameters()), before)
        if interruption.left > 0:  # the step was over before
            break
        one_step(optimizer, closure_for(model, data), form)  # nothing is left behind
    assert number > 30


def test_what_the_block_wrote_is_undone():
    model, _, optimizer = ready(AdversarialWeightPerturbation, torch.float32)
    before = weights_of(model)
    told = pytest.warns(UserWarning, match=r"shape \(7, 5\) was written to while it was perturbed")
    with told, optimizer.perturb(), torch.no_grad():
        model[0].weight.fill_(7.0)
    assert same_bits(list(model.parameters()), before)


def test_views_of_a_flat_buffer_stay_views():
    flat = torch.randn(12)
    param = nn.Parameter(flat[2:10].view(2, 4))
    param.grad = torch.randn(2, 4)
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD([param], lr=0.1), 0.1)
    before = flat.clone()
    with optimizer.perturb():
        assert not torch.equal(flat, before)
    assert same_bits([flat], [before])


def test_flushing_denormals_does_not_reach_the_weights():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor never flushes denormals")
    try:
        model, _, optimizer = ready(AdversarialWeightPerturbation, torch.float32)
        before = weights_of(model)
        with optimizer.perturb():
            pass
        assert same_bits(list(model.parameters()), before)
    finally:
        torch.set_flush_denormal(False)


def test_a_graph_made_before_the_block_is_refused_inside_by_autograd():
    model, data, optimizer = ready(AdversarialWeightPerturbation, torch.float32)
    loss = loss_of(model, data)
    with optimizer.perturb(), pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_autocast_sees_moved_and_restored_weights():
    weight = nn.Parameter(torch.full((1, 4), 1.0))
    weight.grad = torch.ones(1, 4)
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD([weight], lr=0.1), 0.5)
    x = torch.ones(1, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        clean = nn.functional.linear(x, weight).item()
        with optimizer.perturb():
            assert nn.functional.linear(x, weight).item() == 1.5 * clean
        assert nn.functional.linear(x, weight).item() == clean


def test_parameters_sharing_memory_that_first_move_at_different_times_come_back():
    early = nn.Parameter(torch.randn(4, 4))
    late = nn.Parameter(early.data.view(2, 8))
    before = early.detach().clone()
    base = torch.optim.SGD([early, late], lr=0.1)
    optimizer = AdversarialWeightPerturbation(base, 0.1, steps=2)
    early.grad = torch.randn(4, 4)
    with optimizer.perturb():
        optimizer.zero_grad()
        late.grad = torch.randn(2, 8)
        optimizer.ascend()
    assert same_bits([early], [before])


def test_what_moves_after_an_ascent_that_was_refused():
    early, late = (nn.Parameter(torch.randn(3, 3)) for _ in range(2))
    refused = nn.Parameter(torch.randn(3, 3).to_sparse())
    before = weights_of(nn.ParameterList([early, late]))
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD([early, late, refused], lr=0.1), 0.1)
    early.grad = torch.ones(3, 3)
    with optimizer.perturb():
        late.grad, refused.grad = torch.ones(3, 3), torch.ones(3, 3).to_sparse()
        with pytest.raises(RuntimeError, match="only strided tensors"):
            optimizer.ascend()
        refused.grad = None
        optimizer.ascend()
        assert not torch.equal(late, before[1])
    assert same_bits([early, late], before)


def test_a_block_can_be_entered_again():
    model, data = small_net(), batch()
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD(model.parameters(), lr=0.1), 0.1)
    closure_for(model, data)()
    before, held = weights_of(model), optimizer.perturb()
    for _ in range(2):
        with optimizer.perturb():
            assert not same_bits(weights_of(model), before)
            with pytest.raises(RuntimeError, match="inside a perturb"), held:
                pass
            held = optimizer._block("a perturb() block")
            assert not same_bits(weights_of(model), before)
        assert same_bits(weights_of(model), before)
