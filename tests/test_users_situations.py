"""Situations from users' reports, by kind; beside every move the value by hand, in float64."""

import copy
import gc
import pickle
import warnings
from collections import defaultdict

import pytest
import torch
from reference import batch, closure_for, one_step, same_bits, small_net
from torch import Tensor, nn

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation, freeze_running_stats
from torch_awp.optimizer import Pass
from torch_awp.perturbation import Move, Perturbation

WRAPS = {
    "awp": AdversarialWeightPerturbation,
    "update": lambda base, gamma: AdversarialWeightPerturbation(base, gamma, ascent="update"),
    "rwp": RandomWeightPerturbation,
}


def along(weight: Tensor, direction: Tensor, gamma: float) -> Tensor:
    """By hand: ``w + gamma * W * d / ||d||``, float64."""
    w, d = weight.detach().double(), direction.detach().double()
    return w + gamma * w.norm() * d / d.norm()


def moved_to(param: Tensor, optimizer) -> Tensor:
    with optimizer.perturb():
        return param.detach().clone()


def a_matrix(*shape: int, dtype: torch.dtype = torch.float64) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape or (3, 4), dtype=dtype))


# -- a method of torch.optim.Optimizer that pickle uses, called by a user --------------------------

RESETS = {
    "__setstate__": lambda optimizer: optimizer.__setstate__({"state": defaultdict(dict)}),
    "assigned": lambda optimizer: setattr(optimizer, "state", defaultdict(dict)),
    "cleared": lambda optimizer: optimizer.state.clear(),
}


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("wrap", WRAPS)
def test_after_a_reset_of_state_the_base_has_forgotten_its_momentum(wrap, reset):
    param, lr = a_matrix(), 0.1
    optimizer = WRAPS[wrap](torch.optim.SGD([param], lr=lr, momentum=0.9), 0.1)
    for step in range(3):
        if step == 2:
            RESETS[reset](optimizer)
        before = param.detach().clone()
        for _ in optimizer.passes():
            param.grad = torch.full_like(param, step + 1.0)
        optimizer.step()
    torch.testing.assert_close(param.detach(), before - lr * 3.0)  # not 3 + 0.9 * (...)


def test_groups_given_to_setstate_are_the_bases():
    param = a_matrix()
    optimizer = RandomWeightPerturbation(torch.optim.SGD([param], lr=0.1), 0.1)
    group = {**optimizer.param_groups[0], "lr": 0.7}
    optimizer.__setstate__({"state": defaultdict(dict), "param_groups": [group]})
    assert optimizer.base.param_groups == [group]


# -- what the base concludes from its state --------------------------------------------------------

BASES = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.01),
    "RMSprop": lambda params: torch.optim.RMSprop(params, lr=0.01),
    "NAdam": lambda params: torch.optim.NAdam(params, lr=0.01),
}


class Merged(torch.optim.SGD):
    """Its state is put together anew at each reading, as optimizers around several have it."""

    @property
    def state(self):
        return defaultdict(dict, {param: dict(own) for param, own in self._parts.items()})

    @state.setter
    def state(self, value):
        self._parts = value


@pytest.mark.parametrize("base", [*BASES, "Merged"])
@pytest.mark.parametrize("before", [0, 1])
def test_steps_before_the_first_gradient_leave_the_base_as_it_was(base, before):
    build = BASES.get(base, lambda params: Merged(params, lr=0.1))
    param = a_matrix()
    optimizer = AdversarialWeightPerturbation(build([param]), 0.1, ascent="update")
    if before:
        optimizer.step()
    assert not any(optimizer.state.values())
    for _ in range(2):
        home = param.detach().clone()
        for _ in optimizer.passes():
            param.grad = torch.randn_like(param)
        optimizer.step()
    expected = along(param, param.detach() - home, 0.1)  # on past the last change
    torch.testing.assert_close(moved_to(param, optimizer), expected)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("interval", [1, 2])
@pytest.mark.parametrize("with_gradients", [0, 1], ids=["of none", "of one tensor alone"])
def test_a_checkpoint_from_before_a_gradient_does_not_break_the_plain_base(
    base, interval, with_gradients
):
    params = [a_matrix(), a_matrix()]
    optimizer = AdversarialWeightPerturbation(
        BASES[base](params), 0.1, ascent="update", interval=interval
    )
    if with_gradients:
        for _ in optimizer.passes():
            params[0].grad = torch.ones_like(params[0])
    optimizer.step()
    stepped = []
    for checkpoint in (optimizer.state_dict(), optimizer.base.state_dict()):
        twins = copy.deepcopy(params)
        plain = BASES[base](twins)
        plain.load_state_dict(copy.deepcopy(checkpoint))
        for param in twins:
            param.grad = torch.full_like(param, 2.0)
        plain.step()
        stepped.append(twins)
    assert same_bits(*stepped)


# -- nothing is trained through the wrapper --------------------------------------------------------


def stepped_in_hooks(model: nn.Module) -> torch.optim.Optimizer:
    for param in model.parameters():
        inner = torch.optim.SGD([param], lr=0.1)

        def step(own: Tensor, inner: torch.optim.Optimizer = inner) -> None:
            inner.step()
            inner.zero_grad()

        param.register_post_accumulate_grad_hook(step)
    return torch.optim.SGD([torch.randn(1, 1)], lr=0.1)  # a stand-in, which nothing trains


def all_frozen(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.requires_grad_(False)[0].parameters(), lr=0.1)


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("elsewhere", [stepped_in_hooks, all_frozen])
def test_a_wrapper_through_which_nothing_is_trained_says_so_once(wrap, elsewhere):
    model, (x, _) = small_net(), batch()
    optimizer = WRAPS[wrap](elsewhere(model), 0.1)
    x.requires_grad_()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            for _ in optimizer.passes():
                optimizer.zero_grad()
                model(x).square().mean().backward()
            optimizer.step()
    assert [str(w.message).split(":")[0] for w in caught] == ["step() without a gradient"]


# -- gradients wider than their parameters ---------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-30, 1e-9, 1.0, 1e6, 1e18])
@pytest.mark.parametrize("constraint", ["layer", "element"])
def test_a_direction_is_scaled_before_it_is_narrowed(dtype, size, constraint):
    param = a_matrix(8, 8, dtype=dtype)
    direction = torch.randn(8, 8) * size
    expected = along(param, direction, 0.1)
    if constraint == "element":
        home = param.detach().double()
        expected = home + (expected - home).clamp(-0.1 * home.abs(), 0.1 * home.abs())
    with Perturbation(constraint, 0.0, {}) as perturbation:
        perturbation.move([param], [[Move(param, direction, 0.1, 0.1)]])
        moved = param.detach().double()
    spacing = torch.finfo(dtype).eps
    torch.testing.assert_close(moved, expected, rtol=spacing, atol=1e-5)


def test_a_gradient_of_another_dtype_is_climbed_along_whatever_its_size():
    param = a_matrix(8, 8, dtype=torch.float16)
    if hasattr(param, "grad_dtype"):  # before it torch has no such gradients
        param.grad_dtype = torch.float32
    param.grad = (torch.randn(8, 8) * 1e-6).to(getattr(param, "grad_dtype", param.dtype))
    expected = along(param, param.grad, 0.1)
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD([param], lr=0.1), 0.1)
    moved = moved_to(param, optimizer).double()
    torch.testing.assert_close(moved, expected, rtol=2e-3, atol=1e-5)


# -- what is written while weights are perturbed ---------------------------------------------------


def unit_rows(weight: Tensor) -> None:
    weight.copy_(nn.functional.normalize(weight, dim=1))


WRITES = {"copy_": unit_rows, "mul_": lambda weight: weight.mul_(0.5), "clamp_": Tensor.clamp_}


def write(how: str, weight: Tensor) -> None:
    with torch.no_grad():
        WRITES[how](weight, -0.1, 0.1) if how == "clamp_" else WRITES[how](weight)


@pytest.mark.parametrize("how", WRITES)
@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("form", ["loop", "block", "closure"])
def test_a_write_while_perturbed_is_undone_and_named_once(form, wrap, how):
    model, data = small_net(), batch()
    optimizer = WRAPS[wrap](torch.optim.SGD(model.parameters(), lr=0.0), 0.1)
    closure, weight = closure_for(model, data), model[0].weight
    if wrap == "update":  # which has no direction yet
        optimizer.param_groups[0]["lr"] = 0.1
        one_step(optimizer, closure, form)
        optimizer.param_groups[0]["lr"] = 0.0
    home = weight.detach().clone()

    def writing() -> Tensor:
        if not torch.equal(weight, home):
            write(how, weight)
        return closure()

    with pytest.warns(UserWarning, match=r"shape \(7, 5\) was written to while") as caught:
        one_step(optimizer, writing, form)
    if wrap == "rwp":  # the others have no direction after a step that changed nothing
        one_step(optimizer, writing, form)
    assert len(caught) == 1
    assert same_bits([weight], [home])


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_write_before_the_loop_or_after_the_step_is_right_and_silent(wrap):
    model, data = small_net(), batch()
    optimizer = WRAPS[wrap](torch.optim.SGD(model.parameters(), lr=0.1), 0.1)
    for _ in range(3):
        write("copy_", model[0].weight)
        for p in optimizer.passes():
            if not p.perturbed:
                norms = model[0].weight.detach().norm(dim=1)
                torch.testing.assert_close(norms, torch.ones(7, dtype=torch.float64))
            closure_for(model, data)()
        optimizer.step()
        write("copy_", model[2].weight)
    torch.testing.assert_close(
        model[2].weight.detach().norm(dim=1), torch.ones(3, dtype=torch.float64)
    )


def test_limit_a_write_through_data_while_perturbed_is_undone_without_a_word():
    model = small_net()
    optimizer = RandomWeightPerturbation(torch.optim.SGD(model.parameters(), lr=0.1), 0.1)
    home = model[0].weight.detach().clone()
    with optimizer.perturb():
        model[0].weight.data.mul_(2.0)
    assert same_bits([model[0].weight], [home])


# -- state of one process in a checkpoint that all load --------------------------------------------


def with_seed(seed: int) -> tuple[nn.Parameter, RandomWeightPerturbation]:
    param = nn.Parameter(torch.eye(3, dtype=torch.float64))
    base = torch.optim.SGD([param], lr=0.0)
    return param, RandomWeightPerturbation(base, 0.1, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("draws", [0, 1, 3])
def test_a_generator_of_another_seed_is_named_once_and_goes_on_as_the_saved_one(draws):
    (param, first), (other, second) = with_seed(0), with_seed(1)
    for _ in range(draws):
        moved_to(param, first)
    with pytest.warns(UserWarning, match="of seed 0, and not 1") as caught:
        second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert len(caught) == 1
    assert same_bits([moved_to(param, first)], [moved_to(other, second)])


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_every_process_that_loads_its_own_state_goes_on_in_silence(seed):
    (param, first), (other, second) = with_seed(seed), with_seed(seed)
    moved_to(param, first)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert same_bits([moved_to(param, first)], [moved_to(other, second)])


def test_a_checkpoint_without_a_seed_is_read_in_silence():
    (param, first), (other, second) = with_seed(0), with_seed(1)
    state = copy.deepcopy(first.state_dict())
    del state["param_groups"][0]["perturb_seed"]
    second.load_state_dict(state)
    assert same_bits([moved_to(param, first)], [moved_to(other, second)])


# -- hooks of wrappers that came and went ----------------------------------------------------------


def hooks_of(base: torch.optim.Optimizer) -> tuple[int, int]:
    return len(base._optimizer_step_pre_hooks), len(base._optimizer_step_post_hooks)


@pytest.mark.parametrize("kept", [True, False], ids=["held", "dropped"])
def test_a_base_has_one_pair_of_hooks_however_often_it_is_wrapped(kept):
    param = a_matrix()
    base = torch.optim.SGD([param], lr=0.1)
    mine = base.register_step_pre_hook(lambda *_: None)
    wrappers = []
    for wrap in [*WRAPS.values(), *WRAPS.values()]:
        wrappers = [*(wrappers if kept else []), wrap(base, 0.1)]
        assert hooks_of(base) == (2, 1)
    mine.remove()
    assert hooks_of(base) == (1, 1)
    for _ in wrappers[-1].passes():
        param.grad = torch.ones_like(param)
    wrappers[-1].step()
    assert [group["perturb_step"] for group in base.param_groups] == [1]


USES = {
    "step": lambda optimizer: optimizer.step(),
    "passes": lambda optimizer: optimizer.passes(),
    "perturb": lambda optimizer: optimizer.perturb(),
    "load_state_dict": lambda optimizer: optimizer.load_state_dict(optimizer.base.state_dict()),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("wrap", WRAPS)
def test_of_two_wrappers_of_a_base_the_older_is_an_error(wrap, use):
    base = torch.optim.SGD([a_matrix()], lr=0.1)
    older, _newer = WRAPS[wrap](base, 0.1), RandomWeightPerturbation(base, 0.1)
    with pytest.raises(RuntimeError, match="use the newer wrapper"):
        USES[use](older)


class Around(torch.optim.Optimizer):
    """An optimizer around another, as Accelerate's and Lookahead are."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.state, self.defaults = inner, inner.state, inner.defaults
        self.param_groups = inner.param_groups

    def step(self, closure=None):
        return self.inner.step(closure)


@pytest.mark.parametrize("kept", [True, False], ids=["held", "dropped"])
def test_a_base_that_is_wrapped_again_inside_another_counts_each_step_once(kept):
    param = a_matrix()
    inner = torch.optim.SGD([param], lr=0.1)
    older = RandomWeightPerturbation(inner, 0.1)
    newer = RandomWeightPerturbation(Around(inner), 0.1)
    if not kept:
        del older
    for _ in range(2):
        for _ in newer.passes():
            param.grad = torch.ones_like(param)
        newer.step()
    assert hooks_of(inner) == (1, 1)
    assert inner.param_groups[0]["perturb_step"] == 2
    if kept:
        with pytest.raises(RuntimeError, match="use the newer wrapper"):
            older.perturb()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_has_one_pair_of_hooks_and_leaves_the_original_its_own(copied):
    param = a_matrix()
    original = RandomWeightPerturbation(torch.optim.SGD([param], lr=0.1), 0.1)
    twin = copied(original)
    assert hooks_of(original.base) == hooks_of(twin.base) == (1, 1)
    for optimizer in (original, twin):
        for _ in optimizer.passes():
            for own in optimizer.param_groups[0]["params"]:
                own.grad = torch.ones_like(own)
        optimizer.step()


def test_a_base_steps_plainly_when_its_wrapper_is_gone():
    param = a_matrix()
    base = torch.optim.SGD([param], lr=0.1)
    optimizer = AdversarialWeightPerturbation(base, 0.1)
    del optimizer
    gc.collect()
    home = param.detach().clone()
    param.grad = torch.ones_like(param)
    base.step()
    torch.testing.assert_close(param.detach(), home - 0.1)


# -- another view of the same memory ---------------------------------------------------------------


def transposed(param: nn.Parameter) -> Tensor:
    return param.data.t()  # of a square: the same address and shape


def of_a_larger_storage(param: nn.Parameter) -> Tensor:
    return param.data.untyped_storage() and torch.as_strided(param.data, (4, 4), (1, 4))


@pytest.mark.parametrize("view", [transposed, of_a_larger_storage])
def test_a_parameter_shown_through_another_view_while_perturbed_comes_home(view):
    param = a_matrix(4, 4)
    home, strides = param.detach().clone(), param.stride()
    param.grad = torch.randn_like(param)
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD([param], lr=0.1), 0.1)
    with optimizer.perturb():
        param.data = view(param)
    assert param.stride() == strides
    assert same_bits([param], [home])


@pytest.mark.parametrize("view", [transposed, of_a_larger_storage])
def test_a_parameter_shown_through_another_view_between_blocks_moves_as_it_is_now(view):
    param = a_matrix(4, 4)
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD([param], lr=0.1), 0.1)
    param.grad = torch.randn_like(param)
    moved_to(param, optimizer)
    param.data = view(param)
    home = param.detach().clone()
    param.grad = torch.randn(4, 4, dtype=torch.float64)
    torch.testing.assert_close(moved_to(param, optimizer), along(home, param.grad, 0.1))
    assert same_bits([param], [home])


# -- tensor classes --------------------------------------------------------------------------------


class Int8(Tensor):
    """Weights in int8 with one scale, as classes for training in few bits have them.

    Args:
        lacking: the operations that it does not have.
    """

    @staticmethod
    def __new__(cls, values: Tensor, lacking: tuple[str, ...] = ()):
        return Tensor._make_wrapper_subclass(cls, values.shape, dtype=torch.float32)

    def __init__(self, values: Tensor, lacking: tuple[str, ...] = ()) -> None:
        self.scale = values.abs().max() / 127
        self.codes = (values / self.scale).round().to(torch.int8)
        self.lacking = lacking

    def wide(self) -> Tensor:
        return self.codes * self.scale

    def __repr__(self) -> str:
        return f"Int8({self.wide()!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        name, first = func.overloadpacket.__name__, args[0]
        own = [t for t in torch.utils._pytree.tree_leaves(args) if isinstance(t, Int8)]
        lacking = own[0].lacking if own else ()
        if any(word in name for word in lacking):
            raise NotImplementedError(f"Int8 has no {func}")
        if name in ("detach", "alias"):
            found = Int8(torch.ones_like(first.scale).view(1).expand(first.shape), first.lacking)
            found.codes, found.scale = first.codes, first.scale  # the same memory
            return found
        if name == "_foreach_copy_":
            for target, source in zip(*args[:2], strict=True):
                target.copy_(source)
            return None
        opened = torch.utils._pytree.tree_map(
            lambda t: t.wide() if isinstance(t, Int8) else t, args
        )
        result = func(*opened, **(kwargs or {}))
        if name.endswith("_") and isinstance(first, Int8):
            first.scale.copy_(opened[0].abs().max() / 127)
            first.codes.copy_((opened[0] / first.scale).round())
            return first
        return result


@pytest.mark.parametrize("wrap", ["awp", "rwp"])
@pytest.mark.parametrize("lacking", ["_foreach_copy_", "add_", "empty_like"])
def test_a_tensor_class_without_an_operation_is_an_error_that_names_it(wrap, lacking):
    param = nn.Parameter(Int8(torch.randn(3, 4), (lacking,)))
    before = param.wide().clone()
    optimizer = WRAPS[wrap](torch.optim.SGD([param], lr=0.1), 0.1)
    param.grad = torch.randn(3, 4)
    error = r"a parameter of shape \(3, 4\) is of class Int8, .* leave it out by select"
    with pytest.raises(RuntimeError, match=error), optimizer.perturb():
        pass
    assert same_bits([param.wide()], [before])


def test_a_tensor_class_with_the_operations_moves_and_comes_home():
    param = nn.Parameter(Int8(torch.randn(3, 4)))
    home = param.wide().clone()
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD([param], lr=0.1), 0.5)
    param.grad = torch.randn(3, 4)
    with optimizer.perturb():
        moved = param.wide().double()
    spacing = 2 * moved.abs().max().item() / 127
    torch.testing.assert_close(moved, along(home, param.grad, 0.5), rtol=0, atol=spacing)
    assert same_bits([param.wide()], [home])


def test_an_error_of_torchs_own_classes_stays_what_it_is():
    param = a_matrix()
    with Perturbation("layer", 0.0, {}) as perturbation, pytest.raises(TypeError):
        perturbation.move([param], [[Move(param, param.detach(), "0.1", 0.1)]])


# -- what is running now ---------------------------------------------------------------------------

PASSES = {
    "awp": [Pass(0, True, False), Pass(1, False, True)],
    "rwp": [Pass(0, False, True)],
    "update": [Pass(0, False, True)],
}


@pytest.mark.parametrize("wrap", PASSES)
def test_a_closure_and_what_it_calls_can_ask_which_pass_runs(wrap):
    model, data = small_net(), batch()
    optimizer = WRAPS[wrap](torch.optim.SGD(model.parameters(), lr=0.1), 0.1)
    one_step(optimizer, closure_for(model, data), "closure")
    seen = []
    model.register_forward_hook(lambda *_: seen.append(optimizer.current_pass))
    one_step(optimizer, closure_for(model, data), "closure")
    assert seen == PASSES[wrap]
    assert optimizer.current_pass is None


@pytest.mark.parametrize("form", ["loop", "block", "closure"])
def test_after_an_exception_no_pass_runs(form):
    model, data = small_net(), batch()
    optimizer = RandomWeightPerturbation(torch.optim.SGD(model.parameters(), lr=0.1), 0.1)

    def interrupted() -> Tensor:
        if optimizer.current_pass is not None:
            raise KeyboardInterrupt
        return closure_for(model, data)()

    with pytest.raises(KeyboardInterrupt):
        one_step(optimizer, interrupted, form)
    assert optimizer.current_pass is None


@pytest.mark.parametrize("steps", [1, 3])
def test_statistics_in_a_trainers_closure_move_once_a_step(steps):
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7)).double()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = AdversarialWeightPerturbation(base, 0.1, steps=steps)
    x, mean = torch.randn(6, 5, dtype=torch.float64), torch.zeros(7, dtype=torch.float64)

    def closure() -> Tensor:
        optimizer.zero_grad()
        with freeze_running_stats(model, optimizer.current_pass.index > 0):
            loss = model(x).square().mean()
        loss.backward()
        return loss

    for _ in range(4):
        at_home = x @ model[0].weight.detach().T + model[0].bias.detach()
        mean = 0.9 * mean + 0.1 * at_home.mean(0)
        optimizer.step(closure)
    torch.testing.assert_close(model[1].running_mean, mean)
    assert model[1].num_batches_tracked == 4


# -- whose line a warning shows ------------------------------------------------------------------


def unlooped(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()


def without_gradients(_: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    with optimizer.perturb():
        pass


def attached(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.attach(model, loss=lambda output, *_: output.sum() * 0)
    model(torch.ones(2, 4)).sum().backward()


@pytest.mark.parametrize("scheduled", [False, True])  # a scheduler stands between as well
@pytest.mark.parametrize("situation", [unlooped, without_gradients, attached])
def test_a_warning_shows_the_line_of_whoever_called_torch_or_us(situation, scheduled):
    model = nn.Linear(4, 1)
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD(model.parameters(), lr=0.1))
    if scheduled:
        torch.optim.lr_scheduler.StepLR(optimizer, 1)
    with pytest.warns(UserWarning, match="perturbed") as told:
        situation(model, optimizer)
    assert [warning.filename for warning in told] == [__file__]


def test_a_warning_to_code_whose_module_has_no_name_is_no_error():
    """Python itself drops warnings that point at such code."""
    model = nn.Linear(4, 1)
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD(model.parameters(), lr=0.1))
    exec("with optimizer.perturb():\n    pass", {"__name__": None, "optimizer": optimizer})
    with optimizer.perturb():
        pass
