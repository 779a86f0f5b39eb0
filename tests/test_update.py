"""ascent="update": on past where the base is heading, at the price of plain training."""

import copy
import io
from collections.abc import Iterator

import pytest
import pytorch_optimizer
import torch
from ranks import Ranks
from reference import (
    batch,
    closure_for,
    loss_of,
    one_step,
    project,
    same_bits,
    small_net,
    weights_of,
)
from tiers import first_fast
from torch import Tensor, nn
from torch.distributed.optim import ZeroRedundancyOptimizer

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation

BASES = {
    "SGD": lambda params, **kw: torch.optim.SGD(params, lr=0.1, momentum=0.9, **kw),
    "plain SGD": lambda params, **kw: torch.optim.SGD(params, lr=0.1, **kw),
    "AdamW": lambda params, **kw: torch.optim.AdamW(params, lr=0.01, weight_decay=0.1, **kw),
    "LBFGS": lambda params: torch.optim.LBFGS(params, lr=0.1, max_iter=3),
    "Lion": lambda params: pytorch_optimizer.Lion(params, lr=0.01),
}
MAXIMISING = ["SGD", "plain SGD", "AdamW"]


def update(base, gamma: float = 0.1, **kwargs) -> AdversarialWeightPerturbation:
    return AdversarialWeightPerturbation(base, gamma, ascent="update", **kwargs)


def displacement(optimizer, model: nn.Module) -> list[Tensor]:
    """``v`` of the coming step."""
    home = weights_of(model)
    with optimizer.perturb():
        return [away - w for away, w in zip(weights_of(model), home, strict=True)]


def assert_unperturbed(optimizer, model: nn.Module) -> None:
    home = weights_of(model)
    with optimizer.perturb():
        assert same_bits(weights_of(model), home)


def along(
    before: list[Tensor], now: list[Tensor], gamma: float, constraint: str = "layer"
) -> list[Tensor]:
    """``gamma * W * u / ||u||`` in float64; tensors with one dimension stay."""
    vs = []
    for old, w in zip(before, now, strict=True):
        w, u = w.double(), w.double() - old.double()
        moves = w.ndim > 1 and u.norm() > 0
        v = gamma * w.norm() * u / u.norm() if moves else torch.zeros_like(w)
        vs.append(project(v, w, gamma, constraint))
    return vs


@pytest.mark.parametrize("constraint", ["layer", "element"])
@pytest.mark.parametrize("build", BASES.values(), ids=BASES)
def test_it_goes_on_along_the_last_change(build, constraint):
    model, data = small_net(), batch()
    optimizer = update(build(model.parameters()), constraint=constraint)
    for _ in range(4):
        before = weights_of(model)
        optimizer.step(closure_for(model, data))
        expected = along(before, weights_of(model), 0.1, constraint)
        assert any(v.any() for v in expected)
        torch.testing.assert_close(displacement(optimizer, model), expected, rtol=1e-9, atol=1e-12)


def test_a_gamma_of_a_group_is_the_length():
    model, data = small_net(), batch()
    groups = [
        {"params": model[0].parameters(), "perturb_gamma": 0.3},
        {"params": [model[2].weight]},
    ]
    optimizer = update(torch.optim.SGD(groups, lr=0.1))
    optimizer.step(closure_for(model, data))
    vs = displacement(optimizer, model)
    for i, gamma in [(0, 0.3), (2, 0.1)]:
        weight = weights_of(model)[i]
        torch.testing.assert_close(vs[i].norm(), gamma * weight.norm())


@pytest.mark.parametrize("name", MAXIMISING)
def test_maximising_the_negative_takes_the_steps_of_minimising(name):
    model, data = small_net(), batch()
    twin = copy.deepcopy(model)
    down = update(BASES[name](model.parameters()))
    up = update(BASES[name](twin.parameters(), maximize=True))
    for _ in range(4):
        for _ in down.passes():
            down.zero_grad()
            loss_of(model, data).backward()
        for _ in up.passes():
            up.zero_grad()
            (-loss_of(twin, data)).backward()
        down.step()
        up.step()
    assert all(map(torch.equal, weights_of(model), weights_of(twin)))


# -- nothing to go along -----------------------------------------------------------------------


def test_the_first_step_is_unperturbed():
    model, data = small_net(), batch()
    optimizer = update(torch.optim.SGD(model.parameters(), lr=0.1))
    loss_of(model, data).backward()
    assert_unperturbed(optimizer, model)


def test_a_step_after_a_plain_checkpoint_is_unperturbed():
    model, data = small_net(), batch()
    plain = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    closure_for(model, data)()
    plain.step()
    optimizer = update(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    for _ in range(2):
        optimizer.step(closure_for(model, data))
    optimizer.load_state_dict(plain.state_dict())
    assert_unperturbed(optimizer, model)
    optimizer.step(closure_for(model, data))
    assert any(v.any() for v in displacement(optimizer, model))


def test_a_tensor_that_did_not_change_is_unperturbed():
    params = [nn.Parameter(torch.randn(2, 2)) for _ in range(3)]
    optimizer = update(torch.optim.SGD(params, lr=0.1))
    for moving in (0, 1):
        for i, param in enumerate(params):
            param.grad = torch.full((2, 2), float(i == moving)) if i < 2 else None
        optimizer.step(lambda: [p.grad.add_(0.0) for p in params[:2]])
        with_v = weights_of(nn.ParameterList(params))
        vs = displacement(optimizer, nn.ParameterList(params))
        assert [bool(v.any()) for v in vs] == [i == moving for i in range(3)]
        assert same_bits(weights_of(nn.ParameterList(params)), with_v)


def test_a_tensor_of_another_shape_is_not_perturbed_along_the_old_update():
    model, data = small_net(), batch()
    optimizer = update(torch.optim.SGD(model.parameters(), lr=0.1))
    optimizer.step(closure_for(model, data))
    model[0].weight.data = torch.randn(9, 5, dtype=torch.float64)
    vs = displacement(optimizer, model)
    assert not vs[0].any()
    assert vs[2].any()


# -- what is kept, and when --------------------------------------------------------------------


def kept_tensors(optimizer) -> list[Tensor]:
    """What a checkpoint keeps of the last update; zeros stand for nothing."""
    saved = optimizer.state_dict()["state"].values()
    updates = [values["perturb_update"] for values in saved if "perturb_update" in values]
    return [update for update in updates if update.any()]


def test_a_step_that_a_grad_scaler_skips_keeps_the_update_before_it():
    model, data = small_net(torch.float32), batch(torch.float32)
    optimizer = update(torch.optim.AdamW(model.parameters(), lr=0.01))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def scaled_step(factor: float) -> None:
        for _ in optimizer.passes():
            optimizer.zero_grad()
            scaler.scale(loss_of(model, (factor * data[0], data[1]))).backward()
        scaler.step(optimizer)
        scaler.update()

    for _ in range(2):
        before = weights_of(model)
        scaled_step(1.0)
    expected = along(before, weights_of(model), 0.1)
    at, first = weights_of(model), displacement(optimizer, model)
    scaled_step(torch.inf)
    assert same_bits(weights_of(model), at)
    again = displacement(optimizer, model)
    assert same_bits(again, first)
    torch.testing.assert_close([v.double() for v in again], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "kept_after"),
    [
        ({}, [True, True, True, True, True, True]),
        ({"interval": 2}, [False, True, False, True, False, True]),
        ({"interval": 3, "start_step": 1}, [True, False, False, True, False, False]),
        ({"start_step": 4}, [False, False, False, True, True, True]),
    ],
)
def test_an_update_is_kept_only_where_the_next_step_needs_it(kwargs, kept_after):
    model, data = small_net(), batch()
    optimizer = update(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), **kwargs)
    for expected in kept_after:
        before = weights_of(model)
        optimizer.step(closure_for(model, data))
        assert len(kept_tensors(optimizer)) == (2 if expected else 0)
        vs = along(before, weights_of(model), 0.1 if expected else 0.0)
        torch.testing.assert_close(displacement(optimizer, model), vs, rtol=1e-9, atol=1e-12)


def test_only_what_is_selected_and_has_a_gamma_is_kept():
    model, data = small_net(), batch()
    groups = [
        {"params": model[0].parameters(), "perturb_gamma": 0.0},
        {"params": model[2].parameters()},
    ]
    optimizer = update(torch.optim.SGD(groups, lr=0.1))
    optimizer.step(closure_for(model, data))
    assert [u.shape for u in kept_tensors(optimizer)] == [model[2].weight.shape]


def test_a_loop_that_was_given_up_keeps_the_update():
    model, data = small_net(), batch()
    optimizer = update(torch.optim.SGD(model.parameters(), lr=0.1))
    optimizer.step(closure_for(model, data))
    home, first = weights_of(model), displacement(optimizer, model)
    passes = optimizer.passes()
    for _ in passes:
        assert not same_bits(weights_of(model), home)
        break
    assert same_bits(displacement(optimizer, model), first)


@torch.no_grad()
def decay(model: nn.Module) -> None:
    for param in model.parameters():
        param.mul_(0.5)


def decay_unseen_by_autograd(model: nn.Module) -> None:
    for param in model.parameters():
        param.data.mul_(0.5)


@torch.no_grad()
def move_elsewhere(model: nn.Module) -> None:
    for param in model.parameters():
        param.data = param + 1


@pytest.mark.parametrize(
    "change",
    [
        decay,
        decay_unseen_by_autograd,
        move_elsewhere,
        lambda model: model.load_state_dict(small_net().state_dict()),
    ],
    ids=["in place", "in place by .data", "other memory", "load_state_dict"],
)
def test_what_changes_weights_between_loop_and_step_is_not_the_step(change):
    model, data = small_net(), batch()
    optimizer = update(torch.optim.SGD(model.parameters(), lr=0.1))
    optimizer.step(closure_for(model, data))
    for _ in optimizer.passes():
        closure_for(model, data)()
    change(model)
    before = weights_of(model)
    optimizer.step()
    expected = along(before, weights_of(model), 0.1)
    torch.testing.assert_close(displacement(optimizer, model), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", ["closure", "loop"])
def test_a_step_that_failed_does_not_reach_the_next_one(form):
    """Whoever catches the error may go back to a checkpoint: the weights before are others then."""
    model, data = small_net(), batch()
    optimizer = update(torch.optim.SGD(model.parameters(), lr=0.1))

    def fail(*_: object) -> None:
        raise ValueError

    optimizer.step(closure_for(model, data))
    inside = model[0].weight.register_hook(fail) if form == "closure" else None
    handle = optimizer.register_step_pre_hook(fail)
    with pytest.raises(ValueError):  # noqa: PT011 - our own, bare
        one_step(optimizer, closure_for(model, data), form)
    handle.remove()
    if inside is not None:
        inside.remove()
    model.load_state_dict(small_net().state_dict())
    before = weights_of(model)
    one_step(optimizer, closure_for(model, data), form)
    torch.testing.assert_close(
        displacement(optimizer, model), along(before, weights_of(model), 0.1)
    )


# -- checkpoints and copies --------------------------------------------------------------------


def through_a_file(state_dict: dict) -> dict:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("form", ["closure", "loop", "block"])
@pytest.mark.parametrize("interval", [1, 2])
@pytest.mark.parametrize("build", [BASES["plain SGD"], BASES["AdamW"], BASES["Lion"]])
def test_it_resumes_to_the_bit(build, interval, form):
    model, data = small_net(torch.float32), batch(torch.float32)
    optimizer = update(build(model.parameters()), interval=interval)
    for _ in range(3):
        one_step(optimizer, closure_for(model, data), form)
    twin = copy.deepcopy(model)
    resumed = update(build(twin.parameters()), interval=interval)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    for _ in range(3):
        one_step(optimizer, closure_for(model, data), form)
        one_step(resumed, closure_for(twin, data), form)
        assert same_bits(weights_of(model), weights_of(twin))


@pytest.mark.parametrize("interval", [1, 2, 3])
def test_a_deep_copy_goes_on_as_the_original(interval):
    model, data = small_net(), batch()
    optimizer = AdversarialWeightPerturbation(
        torch.optim.SGD(model.parameters(), lr=0.1), 0.1, ascent="update", interval=interval
    )
    optimizer.step(closure_for(model, data))
    twin, copied = copy.deepcopy((model, optimizer))
    for _ in range(4):
        one_step(optimizer, closure_for(model, data), "loop")
        one_step(copied, closure_for(twin, data), "loop")
    assert same_bits(weights_of(model), weights_of(twin))


def test_a_state_dict_is_not_changed_by_later_steps():
    model, data = small_net(), batch()
    optimizer = update(torch.optim.SGD(model.parameters(), lr=0.1))
    optimizer.step(closure_for(model, data))
    loaded = copy.deepcopy(optimizer.state_dict())
    untouched = copy.deepcopy(loaded)
    other = update(torch.optim.SGD(copy.deepcopy(model).parameters(), lr=0.1))
    other.load_state_dict(loaded)
    with other.perturb():
        for p in other.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
    other.step()
    for index, values in untouched["state"].items():
        for key, value in values.items():
            assert torch.equal(loaded["state"][index][key], value)


@pytest.mark.parametrize("to", ["current", "rwp", "plain"])
def test_another_mode_takes_its_checkpoint_and_keeps_no_update(to):
    model, data = small_net(), batch()
    optimizer = update(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    for _ in range(2):
        optimizer.step(closure_for(model, data))
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    other = {
        "plain": lambda: base,
        "rwp": lambda: RandomWeightPerturbation(base, 0.1),
    }.get(to, lambda: AdversarialWeightPerturbation(base, 0.1, ascent=to))()
    other.load_state_dict(optimizer.state_dict())
    other.step(closure_for(model, data))
    assert torch.equal(
        base.state[model[0].weight]["momentum_buffer"].isfinite().all(), torch.tensor(True)
    )
    if to == "current":
        assert not kept_tensors(other)


# -- ZeroRedundancyOptimizer -------------------------------------------------------------------


def sharded_state(model: nn.Module, ascent: str) -> AdversarialWeightPerturbation:
    base = ZeroRedundancyOptimizer(
        model.parameters(), optimizer_class=torch.optim.AdamW, lr=0.01, weight_decay=0.1
    )
    return AdversarialWeightPerturbation(base, 0.1, ascent=ascent)


def zero_run(rank: int, ascent: str) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Weights of the run that goes on, of the one resumed, and of one process alone."""
    model, data = small_net(), batch()
    alone = copy.deepcopy(model)
    optimizer = sharded_state(model, ascent)
    adamw = torch.optim.AdamW(alone.parameters(), lr=0.01, weight_decay=0.1)
    reference = AdversarialWeightPerturbation(adamw, 0.1, ascent=ascent)
    for _ in range(3):
        one_step(optimizer, closure_for(model, data), "loop")
        one_step(reference, closure_for(alone, data), "loop")
    optimizer.base.consolidate_state_dict(to=0)
    box = [through_a_file(optimizer.state_dict()) if rank == 0 else None]
    torch.distributed.broadcast_object_list(box, src=0)
    twin = copy.deepcopy(model)
    resumed = sharded_state(twin, ascent)
    resumed.load_state_dict(box[0])
    for _ in range(3):
        one_step(optimizer, closure_for(model, data), "loop")
        one_step(resumed, closure_for(twin, data), "loop")
        one_step(reference, closure_for(alone, data), "loop")
    return weights_of(model), weights_of(twin), weights_of(alone)


@pytest.fixture
def one_rank(tmp_path) -> Iterator[Ranks]:
    ranks = Ranks(1, tmp_path)
    yield ranks
    ranks.stop()


@pytest.mark.parametrize("size", first_fast(["two_ranks", "one_rank"]))
def test_a_consolidated_sharded_state_resumes_to_the_bit(request, size):
    for going_on, resumed, alone in request.getfixturevalue(size).run(zero_run, "update"):
        assert same_bits(resumed, going_on)
        torch.testing.assert_close(going_on, alone, rtol=1e-9, atol=1e-11)
