"""To everything around it the wrapper is one torch optimizer: the base."""

import copy
import gc
import inspect
import pickle
import weakref

import pytest
import torch
from reference import batch, closure_for, loss_of, same_bits, small_net, weights_of
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation

WRAPPERS = [AdversarialWeightPerturbation, RandomWeightPerturbation]


def pair(wrapper=AdversarialWeightPerturbation, **kwargs):
    model = small_net()
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, base, wrapper(base, 0.1, **kwargs)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_it_is_an_optimizer_with_the_bases_own_groups_state_and_defaults(wrapper):
    _, base, optimizer = pair(wrapper)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.base is base
    assert optimizer.param_groups is base.param_groups
    assert optimizer.state is base.state
    assert optimizer.defaults is base.defaults


def test_assigning_groups_state_and_defaults_reaches_the_base():
    _, base, optimizer = pair()
    groups, state, defaults = [dict(base.param_groups[0])], {}, {"lr": 1.0}
    optimizer.param_groups, optimizer.state, optimizer.defaults = groups, state, defaults
    assert base.param_groups is groups
    assert base.state is state
    assert base.defaults is defaults


def test_views_stay_live_after_the_base_has_loaded_a_checkpoint():
    _, base, optimizer = pair()
    base.load_state_dict(base.state_dict())
    assert optimizer.param_groups is base.param_groups
    assert optimizer.state is base.state


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_is_the_bases(set_to_none):
    model, _, optimizer = pair()
    loss_of(model, batch()).backward()
    optimizer.zero_grad(set_to_none=set_to_none)
    gradient = model[0].weight.grad
    assert gradient is None if set_to_none else not gradient.any()


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_repr_shows_wrapper_base_and_gamma(wrapper):
    _, base, optimizer = pair(wrapper)
    text = repr(optimizer)
    assert text.startswith(wrapper.__name__)
    assert "gamma=0.1" in text
    assert repr(base) in text


HOOKS = [
    ("register_step_pre_hook", 2),
    ("register_step_post_hook", 2),
    ("register_state_dict_pre_hook", 1),
    ("register_state_dict_post_hook", 1),
    ("register_load_state_dict_pre_hook", 1),
    ("register_load_state_dict_post_hook", 1),
]


@pytest.mark.parametrize(("register", "times"), HOOKS)
def test_a_hook_fires_once_for_what_the_base_does_and_can_be_removed(register, times):
    model, _, optimizer = pair()
    calls = []

    def use() -> None:
        optimizer.step(closure_for(model, batch()))
        with optimizer.perturb():
            closure_for(model, batch())()
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())

    handle = getattr(optimizer, register)(lambda *args: calls.append(args[0]))
    use()
    assert calls == [optimizer.base] * times
    handle.remove()
    use()
    assert len(calls) == times


def test_a_hook_on_the_base_fires_too():
    model, base, optimizer = pair()
    calls = []
    base.register_step_post_hook(lambda *args: calls.append(None))
    optimizer.step(closure_for(model, batch()))
    assert len(calls) == 1


def test_global_hooks_fire_once_a_step():
    model, _, optimizer = pair()
    calls = []
    handles = [
        register_optimizer_step_pre_hook(lambda *args: calls.append("pre")),
        register_optimizer_step_post_hook(lambda *args: calls.append("post")),
    ]
    try:
        optimizer.step(closure_for(model, batch()))
    finally:
        for handle in handles:
            handle.remove()
    assert calls == ["pre", "post"]


SCHEDULER_ARGUMENTS = {
    "LambdaLR": {"lr_lambda": lambda step: 0.9**step},
    "MultiplicativeLR": {"lr_lambda": lambda step: 0.9},
    "StepLR": {"step_size": 2},
    "MultiStepLR": {"milestones": [1, 3]},
    "ConstantLR": {},
    "LinearLR": {},
    "ExponentialLR": {"gamma": 0.9},
    "PolynomialLR": {},
    "CosineAnnealingLR": {"T_max": 4},
    "CosineAnnealingWarmRestarts": {"T_0": 2},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1},
    "OneCycleLR": {"max_lr": 0.2, "total_steps": 10},
    "ReduceLROnPlateau": {"patience": 0},
    "SequentialLR": None,
    "ChainedScheduler": None,
    "SWALR": {"swa_lr": 0.05},
}


def schedulers() -> list[str]:
    found = [
        name
        for module in (lr_scheduler, torch.optim.swa_utils)
        for name, cls in vars(module).items()
        if inspect.isclass(cls) and issubclass(cls, lr_scheduler.LRScheduler)
    ]
    return sorted(set(found) - {"LRScheduler", "_LRScheduler"})


def schedule(name: str, optimizer: torch.optim.Optimizer):
    if name == "SequentialLR":
        parts = [lr_scheduler.LinearLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.9)]
        return lr_scheduler.SequentialLR(optimizer, parts, milestones=[2])
    if name == "ChainedScheduler":
        parts = [lr_scheduler.LinearLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.9)]
        return lr_scheduler.ChainedScheduler(parts, optimizer=optimizer)
    cls = getattr(lr_scheduler, name, None) or getattr(torch.optim.swa_utils, name)
    return cls(optimizer, **SCHEDULER_ARGUMENTS[name])


# torch 2.6 calls its own SequentialLR with an argument it deprecates.
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
@pytest.mark.parametrize("name", schedulers())
@pytest.mark.parametrize("on", ["wrapper", "base"])
def test_every_scheduler_reaches_the_base_without_a_step_order_warning(name, on):
    model, base, optimizer = pair()
    plain_model = copy.deepcopy(model)
    plain = torch.optim.SGD(plain_model.parameters(), lr=0.1, momentum=0.9)
    scheduler = schedule(name, optimizer if on == "wrapper" else base)
    expected = schedule(name, plain)
    data, rates = batch(), []
    for _ in range(5):
        optimizer.step(closure_for(model, data))
        plain.step(closure_for(plain_model, data))
        for each in (scheduler, expected):
            each.step(*([1.0] if name == "ReduceLROnPlateau" else []))
        rates.append(base.param_groups[0]["lr"])
        assert rates[-1] == plain.param_groups[0]["lr"]
    assert len(set(rates)) > 1


def test_a_scheduler_can_drive_gamma():
    model, _, optimizer = pair()
    optimizer.param_groups[0]["perturb_gamma"] = 0.0
    losses: list[float] = []
    optimizer.step(closure_for(model, batch(), losses))
    optimizer.param_groups[0]["perturb_gamma"] = 0.01
    optimizer.step(closure_for(model, batch(), losses))
    assert len(losses) == 1 + 2


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_copy_continues_like_the_original_and_is_independent(copied, wrapper):
    model, data = small_net(), batch()
    generator = torch.Generator().manual_seed(3)
    more = {"generator": generator} if wrapper is RandomWeightPerturbation else {}
    base = torch.optim.Adam(model.parameters(), lr=1e-2)
    optimizer = wrapper(base, 0.1, interval=2, **more)
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.9)
    for _ in range(3):
        optimizer.step(closure_for(model, data))
        scheduler.step()
    twin_model, twin = copied((model, optimizer))
    frozen = weights_of(model)
    for _ in range(3):
        twin.step(closure_for(twin_model, data))
    assert same_bits(weights_of(model), frozen)
    for _ in range(3):
        optimizer.step(closure_for(model, data))
    assert same_bits(weights_of(model), weights_of(twin_model))
    assert repr(twin) == repr(optimizer)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_state_to_copy_has_what_torchs_own_has(wrapper):
    """torch_xla's `reduce_gradients` takes the groups from there."""
    base = torch.optim.Adam(small_net().parameters())
    optimizer = wrapper(base, 0.1)
    for values in (optimizer.__getstate__(), copy.deepcopy(optimizer).__getstate__()):
        assert base.__getstate__().keys() <= values.keys()
    for name, value in base.__getstate__().items():
        assert optimizer.__getstate__()[name] is value


def test_a_copy_goes_on_with_the_groups_of_its_base():
    _, _, optimizer = pair()
    twin = copy.deepcopy(optimizer)
    twin.base.param_groups = [dict(group) for group in twin.param_groups]
    assert twin.__getstate__()["param_groups"] is twin.param_groups is twin.base.param_groups


def test_a_copy_has_live_hooks_of_its_own():
    model, _, optimizer = pair()
    twin_model, twin = copy.deepcopy((model, optimizer))
    calls = []
    twin.register_step_post_hook(lambda *args: calls.append(args[0]))
    twin.step(closure_for(twin_model, batch()))
    optimizer.step(closure_for(model, batch()))
    assert calls == [twin.base]


def test_training_for_long_leaves_nothing_behind():
    model, data = small_net(), batch()
    base = torch.optim.SGD(model.parameters(), lr=1e-3)
    optimizer = AdversarialWeightPerturbation(base, 0.1, ascent="update")

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    closure = closure_for(model, data)
    for _ in range(3):
        optimizer.step(closure)
    after_three = tensors()
    for _ in range(100):
        optimizer.step(closure)
    assert tensors() <= after_three


def test_the_wrapper_does_not_outlive_its_last_reference():
    model, _, optimizer = pair()
    optimizer.step(closure_for(model, batch()))
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None


def test_names_reach_the_optimizer_of_a_named_module():
    model = nn.Sequential(nn.Linear(2, 2))
    optimizer = AdversarialWeightPerturbation(torch.optim.Adam(model.named_parameters()))
    assert optimizer.param_groups[0]["param_names"] == ["0.weight", "0.bias"]


def test_zero_grad_takes_what_the_bases_takes():
    class Bare(torch.optim.SGD):
        def zero_grad(self):
            super().zero_grad()

    model = small_net()
    optimizer = AdversarialWeightPerturbation(Bare(model.parameters(), lr=0.1), 0.1)
    loss_of(model, batch()).backward()
    optimizer.zero_grad()
    assert model[0].weight.grad is None


def realised(optimizer) -> list[float]:
    """How far each parameter group moves, relative to its weights."""
    groups = [group["params"] for group in optimizer.param_groups]
    before = [[param.detach().clone() for param in params] for params in groups]
    with optimizer.perturb():
        return [
            round((param.detach() - w).norm().item() / w.norm().item(), 6)
            for params, ws in zip(groups, before, strict=True)
            for param, w in zip(params, ws, strict=True)
        ]


def test_wrapping_a_base_again_uses_the_new_gamma_and_keeps_the_groups_own():
    model = small_net()
    groups = [{"params": [model[0].weight], "perturb_gamma": 0.3}, {"params": [model[2].weight]}]
    base = torch.optim.SGD(groups, lr=0.1)
    assert realised(RandomWeightPerturbation(base, 0.1)) == [0.3, 0.1]
    assert realised(RandomWeightPerturbation(base, 0.2)) == [0.3, 0.2]


def test_assigning_groups_in_another_order_keeps_the_count():
    model, data = small_net(), batch()
    groups = [{"params": [model[0].weight]}, {"params": [model[2].weight]}]
    optimizer = RandomWeightPerturbation(torch.optim.SGD(groups, lr=0.1), 0.1, start_step=2)
    for _ in range(2):
        optimizer.step(closure_for(model, data))
    optimizer.param_groups = optimizer.param_groups[::-1]
    assert realised(optimizer) == [0.1, 0.1]


def test_assigning_groups_without_names_under_select_is_an_error():
    model = small_net()
    base = torch.optim.SGD(model.named_parameters(), lr=0.1)
    optimizer = RandomWeightPerturbation(base, 0.1, select=lambda name, param: "weight" in name)
    optimizer.param_groups = [{**base.param_groups[0]}]
    del optimizer.param_groups[0]["param_names"]
    with pytest.raises(ValueError, match="needs parameter names"), optimizer.perturb():
        pass
