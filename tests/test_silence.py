"""Where a perturbation would be lost or wrong without a sign: a warning or an error names it."""

import contextlib
import copy
import gc
import pickle

import pytest
import pytorch_optimizer
import torch
from reference import (
    batch,
    closure_for,
    loss_of,
    one_step,
    same_bits,
    small_net,
    weights_of,
)
from surroundings import AROUND
from torch import Tensor, nn

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation, perturbation


def awp(model: nn.Module, base=torch.optim.SGD, **kwargs) -> AdversarialWeightPerturbation:
    return AdversarialWeightPerturbation(base(model.named_parameters(), lr=0.1), 0.1, **kwargs)


def relative_move(param: Tensor, optimizer) -> float:
    """By hand, in float64: ``||v|| / ||w||`` inside a block."""
    home = param.detach().double().clone()
    with optimizer.perturb():
        return ((param.detach().double() - home).norm() / home.norm()).item()


# -- nothing moves ---------------------------------------------------------------------------------


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_cleared_before_the_block_are_named(set_to_none):
    model = small_net()
    optimizer = awp(model)
    loss_of(model, batch()).backward()
    optimizer.zero_grad(set_to_none=set_to_none)
    with pytest.warns(UserWarning, match="has a gradient other than zero"):
        assert relative_move(model[0].weight, optimizer) == 0
    with optimizer.perturb():  # once
        pass


def test_gradients_cleared_before_a_further_ascent_are_named():
    model = small_net()
    optimizer = awp(model, steps=2)
    loss_of(model, batch()).backward()
    with optimizer.perturb():
        optimizer.zero_grad()
        with pytest.warns(UserWarning, match="has a gradient other than zero"):
            optimizer.ascend()


@pytest.mark.parametrize("wrapper", [AdversarialWeightPerturbation, RandomWeightPerturbation])
def test_a_select_that_picks_nothing_is_named(wrapper):
    model = small_net()
    base = torch.optim.SGD(model.named_parameters(), lr=0.1)
    optimizer = wrapper(base, 0.1, select=lambda name, param: "weigth" in name)
    loss_of(model, batch()).backward()
    with pytest.warns(UserWarning, match="select picks none"), optimizer.perturb():
        pass


@pytest.mark.parametrize("ascent", ["current", "update"])
def test_flat_parameters_are_named(ascent):
    flat = nn.Parameter(torch.randn(12))
    flat.grad = torch.randn(12)
    base = torch.optim.SGD([flat], lr=0.1)
    optimizer = AdversarialWeightPerturbation(base, 0.1, ascent=ascent)
    with pytest.warns(UserWarning, match="flat parameters"), optimizer.perturb():
        pass


QUIET = {
    "zero weights": lambda: (torch.zeros(3, 3), {}),
    "not due": lambda: (torch.ones(3, 3), {"start_step": 1}),
    "gamma 0": lambda: (torch.ones(3, 3), {"gamma": 0.0}),
    "first step of update": lambda: (torch.ones(3, 3), {"ascent": "update"}),
}


@pytest.mark.parametrize("why", QUIET)
def test_where_nothing_should_move_nothing_is_said(why):
    weight, settings = QUIET[why]()
    param = nn.Parameter(weight)
    base = torch.optim.SGD([param], lr=0.1)
    optimizer = AdversarialWeightPerturbation(base, **{"gamma": 0.1, **settings})
    for _ in optimizer.passes():
        param.grad = torch.zeros(3, 3) if why == "not due" else torch.ones(3, 3)
    optimizer.step()


@pytest.mark.parametrize("wrapper", [AdversarialWeightPerturbation, RandomWeightPerturbation])
@pytest.mark.parametrize("select", [None, lambda name, param: True])
def test_a_frozen_group_beside_one_with_gamma_0_is_no_reason_to_warn(wrapper, select):
    frozen, still = (nn.Parameter(torch.ones(3, 3), requires_grad=each) for each in (False, True))
    still.grad = torch.ones(3, 3)
    groups = [{"params": [("a", frozen)]}, {"params": [("b", still)], "perturb_gamma": 0.0}]
    with wrapper(torch.optim.SGD(groups, lr=0.1), 0.1, select=select).perturb():
        pass


def test_an_overflow_in_the_gradients_is_no_reason_to_warn():
    param = nn.Parameter(torch.ones(3, 3))
    param.grad = torch.full((3, 3), torch.inf)
    with AdversarialWeightPerturbation(torch.optim.SGD([param], lr=0.1), 0.1).perturb():
        pass


@pytest.mark.parametrize("wrapper", [AdversarialWeightPerturbation, RandomWeightPerturbation])
def test_a_trainers_plain_step_is_named_once(wrapper):
    model, data = small_net(), batch()
    optimizer = wrapper(torch.optim.SGD(model.parameters(), lr=0.1), 0.1)
    closure_for(model, data)()
    with pytest.warns(UserWarning, match="unperturbed weights"):
        optimizer.step()
    optimizer.step()


def left_by(way: str, optimizer, closure, at: int) -> None:
    for p in optimizer.passes():
        if way == "before backward" and p.index == at:
            raise ValueError
        closure()
        if p.index == at:
            if way == "return":
                return
            break


@pytest.mark.parametrize("ascent", ["current", "update"])
@pytest.mark.parametrize("way", ["break", "return"])
def test_a_step_after_leaving_the_last_pass_is_right(way, ascent):
    model, data = small_net(), batch()
    optimizer = awp(model, ascent=ascent)
    closure = closure_for(model, data)
    for _ in range(2):
        left_by(way, optimizer, closure, at=1 if ascent == "current" else 0)
        optimizer.step()  # without a warning


@pytest.mark.parametrize(("way", "at"), [("break", 0), ("before backward", 1)])
def test_a_step_after_leaving_the_loop_before_the_last_gradients_is_named(way, at):
    model, data = small_net(), batch()
    optimizer = awp(model)
    with contextlib.suppress(ValueError):
        left_by(way, optimizer, closure_for(model, data), at)
    with pytest.warns(UserWarning, match="unperturbed weights"):
        optimizer.step()


@pytest.mark.parametrize("wrapper", [AdversarialWeightPerturbation, RandomWeightPerturbation])
def test_a_block_without_a_backward_pass_is_named(wrapper):
    model, data = small_net(), batch()
    optimizer = wrapper(torch.optim.SGD(model.parameters(), lr=0.1), 0.1)
    closure_for(model, data)()
    with optimizer.perturb():
        loss_of(model, data)
    with pytest.warns(UserWarning, match="were computed outside a loop"):
        optimizer.step()


def test_a_loop_gone_through_before_the_backward_pass_is_named():
    model, data = small_net(), batch()
    optimizer = awp(model, ascent="update")
    for _ in range(2):
        one_step(optimizer, closure_for(model, data), "loop")
    assert len(list(optimizer.passes())) == 1
    closure_for(model, data)()
    with pytest.warns(UserWarning, match="were computed outside a loop"):
        optimizer.step()


def test_a_plain_step_of_a_base_that_clears_gradients_is_named():
    class Clearing(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            self.zero_grad()

    model = small_net()
    optimizer = awp(model, Clearing)
    loss_of(model, batch()).backward()
    with pytest.warns(UserWarning, match="gradients of unperturbed weights"):
        optimizer.step()


def test_a_plain_step_is_named_where_something_would_have_moved():
    """Not in the first step of single-pass modes, which is unperturbed anyway."""
    model, data = small_net(), batch()
    optimizer = awp(model, ascent="update")
    closure_for(model, data)()
    optimizer.step()
    with pytest.warns(UserWarning, match="unperturbed weights"):
        optimizer.step()


@pytest.mark.parametrize("form", ["block", "loop"])
def test_a_base_that_steps_by_itself_inside_is_an_error(form):
    """Its step would be undone on leaving."""
    model, data = small_net(), batch()
    optimizer = awp(model)
    before = weights_of(model)

    closure_for(model, data)()

    def step_inside() -> None:
        if form == "block":
            with optimizer.perturb():
                optimizer.base.step()
        for _ in optimizer.passes():
            optimizer.base.step()

    with pytest.raises(RuntimeError, match=r"SGD\.step\(\) inside a"):
        step_inside()
    assert same_bits(weights_of(model), before)
    with pytest.warns(UserWarning, match="gradients of unperturbed weights"):
        optimizer.base.step()  # outside it may
    assert optimizer.param_groups[0]["perturb_step"] == 1


# -- closures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ascent", ["current", "update"])
def test_a_closure_without_backward_is_an_error_before_the_base_steps(ascent):
    model, data = small_net(), batch()
    optimizer = awp(model, ascent=ascent)
    loss_of(model, data).backward()
    before = weights_of(model)
    with pytest.raises(RuntimeError, match="computed no gradient"):
        optimizer.step(lambda: loss_of(model, data))
    assert same_bits(weights_of(model), before)


def test_stepping_inside_its_own_closure_is_an_error_before_anything_moves():
    model, data = small_net(), batch()
    optimizer = awp(model)
    before = weights_of(model)

    def closure():
        loss = closure_for(model, data)()
        optimizer.step()
        return loss

    with pytest.raises(RuntimeError, match=r"step\(\) inside a loop"):
        optimizer.step(closure)
    assert same_bits(weights_of(model), before)


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
def test_a_second_order_base_is_an_error_that_names_it():
    model, data = small_net(torch.float32), batch(torch.float32)
    base = pytorch_optimizer.AdaHessian(model.parameters())
    optimizer = AdversarialWeightPerturbation(base, 0.1)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, data)
        loss.backward(create_graph=True)
        return loss

    with pytest.raises(RuntimeError, match=r"AdaHessian\.step\(\) differentiates"):
        optimizer.step(closure)
    optimizer.zero_grad()


# -- the base's sign -------------------------------------------------------------------------------

MAXIMIZING = [torch.optim.SGD, torch.optim.AdamW, pytorch_optimizer.Lion]


@pytest.mark.parametrize("form", ["closure", "loop", "block"])
@pytest.mark.parametrize("ascent", ["current", "update"])
@pytest.mark.parametrize("cls", MAXIMIZING)
def test_maximising_minus_the_loss_takes_the_steps_of_minimising_it(cls, ascent, form):
    data, ends = batch(), []
    for sign in (1, -1):
        torch.manual_seed(1)
        model = small_net()
        base = cls(model.parameters(), lr=1e-2, maximize=sign < 0)
        optimizer = AdversarialWeightPerturbation(base, 0.1, ascent=ascent)

        def closure(model=model, sign=sign):
            model.zero_grad()
            loss = sign * loss_of(model, data)
            loss.backward()
            return loss

        for _ in range(4):
            one_step(optimizer, closure, form)
        ends.append(weights_of(model))
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-14)


class Around(torch.optim.Optimizer):
    """An optimizer around another, kept under a name of its own (timm's Lookahead does so)."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self._base_optimizer = inner

    param_groups = property(lambda self: self._base_optimizer.param_groups)
    state = property(lambda self: self._base_optimizer.state)
    defaults = property(lambda self: self._base_optimizer.defaults)

    def step(self, closure=None):
        return self._base_optimizer.step(closure)


def test_the_sign_of_a_base_inside_the_base_counts():
    param = nn.Parameter(torch.ones(2, 2).double())
    param.grad = torch.full((2, 2), 3.0).double()
    base = Around(pytorch_optimizer.Lion([param], lr=0.1, maximize=True))
    with AdversarialWeightPerturbation(base, 0.5).perturb():
        torch.testing.assert_close(param.detach(), torch.full((2, 2), 0.5).double())


def test_a_base_that_maximises_climbs_against_the_gradient():
    param = nn.Parameter(torch.ones(2, 2).double())
    param.grad = torch.full((2, 2), 3.0).double()
    base = torch.optim.SGD([param], lr=0.1, maximize=True)
    with AdversarialWeightPerturbation(base, 0.5).perturb():
        torch.testing.assert_close(param.detach(), torch.full((2, 2), 0.5).double())


# -- checkpoints -----------------------------------------------------------------------------------


def test_names_of_the_running_model_stay():
    models = [small_net(), small_net()]
    saved, running = (
        AdversarialWeightPerturbation(
            torch.optim.AdamW([(prefix + n, p) for n, p in model.named_parameters()]),
            0.1,
            select=lambda name, param: name.endswith("2.weight"),
        )
        for model, prefix in zip(models, ["module.", ""], strict=True)
    )
    running.load_state_dict(saved.state_dict())
    assert running.param_groups[0]["param_names"] == [n for n, _ in models[1].named_parameters()]


def test_gammas_come_from_the_checkpoint_as_learning_rates_do():
    models = [small_net(), small_net()]
    random = RandomWeightPerturbation(torch.optim.SGD(models[0].parameters(), lr=0.1), 0.5)
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD(models[1].parameters(), lr=0.2), 0.01)
    optimizer.load_state_dict(random.state_dict())
    assert "gamma=0.5" in repr(optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.1
    loss_of(models[1], batch()).backward()
    assert relative_move(models[1][0].weight, optimizer) == pytest.approx(0.5)


def test_shown_is_used():
    model = small_net()
    optimizer = awp(model)
    loss_of(model, batch()).backward()
    with pytest.raises(AttributeError, match="gamma"):
        optimizer.gamma = 0.3
    optimizer.param_groups[0]["perturb_gamma"] = 0.2
    assert "gamma=0.2" in repr(optimizer)
    assert relative_move(model[0].weight, optimizer) == pytest.approx(0.2)
    other = awp(small_net())
    other.load_state_dict(optimizer.state_dict())
    assert "gamma=0.2" in repr(other)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_copies_of_perturbed_weights_are_refused(copied):
    model = small_net()
    optimizer = awp(model)
    loss_of(model, batch()).backward()
    with optimizer.perturb(), pytest.raises(RuntimeError, match="inside a perturb"):
        copied(optimizer)


# -- parameters that change ------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 5])
def test_what_is_kept_of_another_shape_is_not_climbed_along(rows):
    old = nn.Parameter(torch.randn(rows, 3))
    base = torch.optim.Adam([old], lr=1e-2)
    optimizer = AdversarialWeightPerturbation(base, 0.1, ascent="update")
    with optimizer.perturb():
        old.grad = torch.randn(rows, 3)
    optimizer.step()
    new = nn.Parameter(torch.cat([old.detach(), torch.randn(3, 3)]))
    state = optimizer.state.pop(old)
    for key in ("exp_avg", "exp_avg_sq"):
        state[key] = torch.cat([state[key], torch.zeros(3, 3)])
    optimizer.param_groups[0]["params"] = [new]
    optimizer.state[new] = state
    assert relative_move(new, optimizer) == 0
    with optimizer.perturb():
        new.grad = torch.randn_like(new)
    optimizer.step()
    assert relative_move(new, optimizer) == pytest.approx(0.1, rel=1e-5)


def test_the_count_of_steps_survives_removing_and_adding_groups():
    model, data = small_net(), batch()
    optimizer = awp(model, interval=3)
    for _ in range(4):
        optimizer.step(closure_for(model, data))
    group = optimizer.param_groups.pop()
    assert optimizer.param_groups == []
    optimizer.add_param_group({"params": list(model.named_parameters()), "lr": group["lr"]})
    assert optimizer.param_groups[0]["perturb_step"] == 4


def test_assigned_groups_bring_their_count_of_steps():
    model = small_net()
    optimizer = awp(model, start_step=5)
    optimizer.param_groups = [{**group, "perturb_step": 5} for group in optimizer.param_groups]
    passes = []
    for p in optimizer.passes():
        optimizer.zero_grad()
        loss_of(model, batch()).backward()
        passes.append(p)
    assert len(passes) == 2
    optimizer.step()
    assert optimizer.param_groups[0]["perturb_step"] == 6


def test_the_count_of_a_checkpoint_survives_a_new_first_group():
    model, data = small_net(), batch()
    optimizer, resumed = awp(model), awp(small_net())
    for _ in range(4):
        optimizer.step(closure_for(model, data))
    resumed.load_state_dict(optimizer.state_dict())
    group = {**resumed.param_groups[0], "params": [], "param_names": []}
    del group["perturb_step"]
    resumed.param_groups.insert(0, group)
    assert resumed.state_dict()["param_groups"][0]["perturb_step"] == 4


def test_memory_replaced_inside_a_block_cannot_be_moved_on_and_is_restored():
    param = nn.Parameter(torch.randn(4, 4))
    param.grad = torch.randn(4, 4)
    before, place = param.detach().clone(), param.data_ptr()
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD([param], lr=0.1), 0.1)

    def replace(shape: tuple[int, int]) -> None:
        with optimizer.perturb():
            param.data, param.grad = torch.randn(shape), torch.randn(shape)
            optimizer.ascend()

    for shape in ((4, 4), (5, 4)):
        with pytest.raises(RuntimeError, match=r"shape \(4, 4\) was given other memory"):
            replace(shape)
        assert torch.equal(param, before)
        assert param.data_ptr() == place
        param.grad = torch.randn(4, 4)


def test_memory_replaced_between_blocks_moves():
    param = nn.Parameter(torch.randn(4, 4).double())
    param.grad = torch.randn(4, 4).double()
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD([param], lr=0.1), 0.1)
    for _ in range(2):
        assert relative_move(param, optimizer) == pytest.approx(0.1)
        param.data = 3 * param.data


def test_a_parameter_of_another_layout_is_named():
    param = nn.Parameter(torch.eye(3).to_sparse())
    optimizer = RandomWeightPerturbation(torch.optim.SGD([param], lr=0.1), 0.1)
    with pytest.raises(RuntimeError, match=r"layout torch\.sparse_coo"), optimizer.perturb():
        pass


@pytest.mark.parametrize("wrap", [AdversarialWeightPerturbation, RandomWeightPerturbation])
def test_an_expanded_parameter_is_named_before_anything_moves(wrap):
    usual = nn.Parameter(torch.randn(3, 3))
    expanded = nn.Parameter(torch.randn(1, 4).expand(3, 4))
    home = usual.detach().clone()
    usual.grad, expanded.grad = torch.ones(3, 3), torch.ones(3, 4)
    optimizer = wrap(torch.optim.SGD([usual, expanded], lr=0.1), 0.1)
    with pytest.raises(RuntimeError, match="is expanded"):
        optimizer.perturb().__enter__()
    assert torch.equal(usual, home)


def test_memory_replaced_inside_a_block_is_restored():
    model = small_net()
    optimizer = awp(model)
    loss_of(model, batch()).backward()
    before, places = weights_of(model), [p.data_ptr() for p in model.parameters()]
    with optimizer.perturb():
        for param in model.parameters():
            if param.ndim > 1:
                param.data = param.data.clone()
    assert same_bits(weights_of(model), before)
    assert [p.data_ptr() for p in model.parameters()] == places


def test_after_memory_was_replaced_the_next_block_moves_the_parameter():
    param = nn.Parameter(torch.randn(4, 4).double())
    param.grad = torch.randn(4, 4).double()
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD([param], lr=0.1), 0.1)
    with optimizer.perturb():
        param.data = param.data.clone()
    assert relative_move(param, optimizer) == pytest.approx(0.1)


def test_after_an_interrupted_return_the_next_block_takes_the_weights_norm_anew(monkeypatch):
    param = nn.Parameter(torch.randn(4, 4).double())
    param.grad = torch.randn(4, 4).double()
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD([param], lr=0.1), 0.1)
    assert relative_move(param, optimizer) == pytest.approx(0.1)
    clear, interrupts = torch.clear_autocast_cache, []

    def interrupted_once() -> None:
        if not interrupts:
            interrupts.append(None)
            raise KeyboardInterrupt
        clear()

    with pytest.raises(KeyboardInterrupt), optimizer.perturb():
        monkeypatch.setattr(torch, "clear_autocast_cache", interrupted_once)
    with torch.no_grad():
        param.mul_(10)
    assert relative_move(param, optimizer) == pytest.approx(0.1)


VIEWS = {
    "conjugate": lambda t: t.conj(),
    "conjugate, 0-dim": lambda t: t[0, 0].conj(),
    "negative": lambda t: t.conj().imag,
}


@pytest.mark.parametrize("view", VIEWS)
def test_a_lazy_view_is_an_error_that_names_it(view):
    param = nn.Parameter(VIEWS[view](torch.randn(3, 3, dtype=torch.complex128)))
    param.grad = torch.ones_like(param.detach().resolve_conj().resolve_neg())
    base = torch.optim.SGD([("p", param)], lr=0.1)
    optimizer = AdversarialWeightPerturbation(base, 0.1, select=lambda name, param: True)
    with pytest.raises(RuntimeError, match="lazy conjugate"), optimizer.perturb():
        pass


# -- what lies around it ---------------------------------------------------------------------------


WRAPS = {
    "layer": lambda base: AdversarialWeightPerturbation(base, 0.1),
    "3 steps": lambda base: AdversarialWeightPerturbation(base, 0.1, steps=3, step_size=0.07),
    "element": lambda base: AdversarialWeightPerturbation(base, 0.1, constraint="element"),
    "update": lambda base: AdversarialWeightPerturbation(base, 0.1, ascent="update"),
    "random": lambda base: RandomWeightPerturbation(
        base, 0.1, generator=torch.Generator().manual_seed(5)
    ),
}


def set_gradients(params: list[nn.Parameter], gradients: list[Tensor]) -> None:
    for param, gradient in zip(params, gradients, strict=True):
        param.grad = gradient.clone()


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("wrap", WRAPS)
def test_ambient_modes_change_nothing_and_leave_nothing(wrap, around):
    """Of a long tensor too, which the host goes through in pieces."""
    weights = [torch.randn(600, 300), torch.randn(3, 4)]
    params = [[nn.Parameter(w.clone()) for w in weights] for _ in range(2)]
    bases = [torch.optim.SGD(each, lr=0.1) for each in params]
    optimizers = [WRAPS[wrap](base) for base in bases]
    for step in range(4):
        gradients = [torch.randn_like(w) for w in weights]
        away = []
        for each, optimizer, context in zip(
            params, optimizers, (AROUND[around], contextlib.nullcontext), strict=True
        ):
            set_gradients(each, gradients)
            with context() if step % 2 == 0 else contextlib.nullcontext():  # as evaluation is
                with optimizer.perturb():
                    for _ in range(1, getattr(optimizer, "steps", 1)):
                        optimizer.ascend()
                    away.append([p.detach().clone() for p in each])
                    set_gradients(each, gradients)
                optimizer.step()
        assert same_bits(*away)
    assert same_bits(*params)
    saved = optimizers[0].state_dict()["state"].values()
    kept = [v for values in saved for k, v in values.items() if "perturb" in k]
    assert len(kept) == (2 if wrap == "update" else 0)
    assert not any(tensor.is_inference() for tensor in kept)


# -- being the base --------------------------------------------------------------------------------


def test_attributes_and_methods_of_the_base_are_the_wrappers():
    model = small_net()
    base = pytorch_optimizer.ScheduleFreeAdamW(model.parameters(), lr=0.1)
    optimizer = AdversarialWeightPerturbation(base, 0.1)
    optimizer.train()
    one_step(optimizer, closure_for(model, batch()), "block")
    optimizer.eval()
    assert base.param_groups[0]["train_mode"] is False
    assert not hasattr(optimizer, "no_such_thing")
    assert not hasattr(awp(small_net()), "eval")
    assert hasattr(pickle.loads(pickle.dumps(optimizer)), "eval")


def test_writing_an_attribute_of_the_base_reaches_it():
    base = torch.optim.SGD(small_net().parameters(), lr=0.1)
    base.temperature = 1.0
    optimizer = AdversarialWeightPerturbation(base, 0.1)
    optimizer.temperature = 2.0
    assert base.temperature == 2.0


class EveryOther(torch.optim.Optimizer):
    """An optimizer around another that steps every second time, as Accelerate's accumulates."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.calls = optimizer, 0

    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)
    defaults = property(lambda self: self.optimizer.defaults)

    def step(self, closure=None):
        self.calls += 1
        return self.optimizer.step(closure) if self.calls % 2 == 0 else None


def test_steps_are_counted_where_the_base_took_them():
    model, data = small_net(), batch()
    optimizer = AdversarialWeightPerturbation(
        EveryOther(torch.optim.SGD(model.parameters(), lr=0.1)), 0.1
    )
    hooked: list[None] = []
    optimizer.register_step_post_hook(lambda *_: hooked.append(None))
    for _ in range(4):
        for _ in optimizer.passes():
            closure_for(model, data)()
        optimizer.step()
    assert optimizer.param_groups[0]["perturb_step"] == len(hooked) == 2


def test_a_step_that_the_base_did_not_take_leaves_no_copy_behind():
    model, data = small_net(), batch()
    base = EveryOther(torch.optim.SGD(model.parameters(), lr=0.1))
    optimizer = AdversarialWeightPerturbation(base, 0.1, ascent="update")
    closure_for(model, data)()
    assert all(p.grad is not None for p in model.parameters())  # torch makes them when asked for
    before = tensors_alive()
    optimizer.step()
    assert optimizer.param_groups[0]["perturb_step"] == 0
    assert tensors_alive() == before


def tensors_alive() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


# -- GradScaler ------------------------------------------------------------------------------------


# -- known limits ----------------------------------------------------------------------------------


def test_limit_recomputing_after_the_block_sees_the_weights_at_home():
    """README, Limits: the backward pass of a checkpointed forward belongs inside."""
    weight = nn.Parameter(torch.full((1, 1), 2.0))
    weight.grad = torch.ones(1, 1)
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD([weight], lr=0.1), 0.5)
    with optimizer.perturb():
        loss = torch.utils.checkpoint.checkpoint(
            lambda x: (x * weight).square().sum(), torch.ones(1, 1), use_reentrant=False
        )
        optimizer.zero_grad()
    loss.backward()
    assert weight.grad.item() == 2 * 2.0  # at w, not 2 * 3.0 at w + v


@pytest.mark.filterwarnings("ignore:.* was written to while it was perturbed")
def test_limit_two_wrappers_left_in_the_order_of_entering_leave_the_first_ones_move():
    """README, Limits: the one that was entered last is to be left first."""
    param = nn.Parameter(torch.full((2, 2), 2.0))
    param.grad = torch.ones(2, 2)
    first, second = (
        AdversarialWeightPerturbation(torch.optim.SGD([param], lr=0.1), 0.5) for _ in range(2)
    )
    with first.perturb(), second.perturb():
        assert param[0, 0] == 2 + 1 + 1.5
    assert param[0, 0] == 2
    blocks = first.perturb(), second.perturb()
    for block in blocks:
        block.__enter__()
    for block in blocks:
        block.__exit__(None, None, None)
    assert param[0, 0] == 2 + 1


def test_limit_an_interrupt_before_coming_home_begins_leaves_weights_away_while_it_is_held(
    monkeypatch,
):
    """README, Limits: until the exception is dropped, or at the latest with the wrapper."""
    model = small_net()
    optimizer = awp(model)
    loss_of(model, batch()).backward()
    home = weights_of(model)
    held = []
    with monkeypatch.context() as patch:
        patch.setattr(perturbation, "retry", interrupted)
        try:
            with optimizer.perturb():
                pass
        except KeyboardInterrupt as error:
            held.append(error)
    assert not same_bits(weights_of(model), home)
    for refused in (optimizer.step, optimizer.state_dict, optimizer.perturb):
        with pytest.raises(RuntimeError, match="traceback of an exception keeps open"):
            refused()
    held.clear()
    assert same_bits(weights_of(model), home)
    optimizer.state_dict()


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_limit_a_group_whose_gamma_was_0_climbs_from_its_second_step_on():
    """README, Limits: nothing was kept of it."""
    model, data = small_net(), batch()
    groups = [
        {"params": model[0].parameters(), "perturb_gamma": 0.0},
        {"params": model[2].parameters()},
    ]
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD(groups, lr=0.1), 0.1, ascent="update")
    optimizer.step(closure_for(model, data))
    optimizer.param_groups[0]["perturb_gamma"] = 0.2
    assert relative_move(model[0].weight, optimizer) == 0
    assert relative_move(model[2].weight, optimizer) == pytest.approx(0.1)
    optimizer.step(closure_for(model, data))
    assert relative_move(model[0].weight, optimizer) == pytest.approx(0.2)
