"""``for p in optimizer.passes()``: the same step as the closure's, for every mode, in one loop."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from reference import (
    ascent,
    batch,
    closure_for,
    loss_of,
    one_step,
    same_bits,
    small_net,
    weights_of,
)
from torch import Tensor, nn

from torch_awp import (
    AdversarialWeightPerturbation,
    RandomWeightPerturbation,
    freeze_running_stats,
)
from torch_awp.optimizer import Pass

BASES = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.01, weight_decay=0.1),
}


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def adversarial(**kwargs):
    kwargs.setdefault("gamma", 0.1)
    return lambda base: AdversarialWeightPerturbation(base, **kwargs)


WRAPS = {
    "awp": adversarial(),
    "awp-box": adversarial(constraint="element"),
    "awp-3-steps": adversarial(steps=3, step_size=0.07),
    "awp-3-steps-box": adversarial(steps=3, step_size=0.07, constraint="element"),
    "awp-interval": adversarial(interval=2, start_step=1),
    "awp-gamma-0": adversarial(gamma=0.0),
    "update": adversarial(ascent="update"),
    "update-box": adversarial(ascent="update", constraint="element"),
    "update-interval": adversarial(ascent="update", interval=2, start_step=1),
    "rwp": lambda base: RandomWeightPerturbation(base, 0.1, generator=seeded()),
    "rwp-interval": lambda base: RandomWeightPerturbation(
        base, 0.1, interval=3, generator=seeded()
    ),
}


@pytest.mark.parametrize("build", BASES.values(), ids=BASES)
@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_a_loop_equals_a_closure_to_the_bit(wrap, build):
    model = small_net(torch.float32)
    twin = copy.deepcopy(model)
    loop, closure = wrap(build(model.parameters())), wrap(build(twin.parameters()))
    for _ in range(6):
        data = batch(torch.float32)
        one_step(loop, closure_for(model, data), "loop")
        one_step(closure, closure_for(twin, data), "closure")
        assert same_bits(weights_of(model), weights_of(twin))


@pytest.mark.parametrize("build", BASES.values(), ids=BASES)
def test_with_gamma_0_a_loop_is_the_bases_own_step(build):
    model, data = small_net(torch.float32), batch(torch.float32)
    twin = copy.deepcopy(model)
    optimizer, plain = WRAPS["awp-gamma-0"](build(model.parameters())), build(twin.parameters())
    for _ in range(3):
        one_step(optimizer, closure_for(model, data), "loop")
        closure_for(twin, data)()
        plain.step()
    assert same_bits(weights_of(model), weights_of(twin))


def step_by_loop(optimizer, model: nn.Module, data: tuple[Tensor, Tensor]) -> list[Pass]:
    seen = []
    for p in optimizer.passes():
        closure_for(model, data)()
        seen.append(p)
    optimizer.step()
    return seen


HOME = Pass(0, climbs=False, perturbed=False)
AWAY = Pass(0, climbs=False, perturbed=True)
TWO = [Pass(0, climbs=True, perturbed=False), Pass(1, climbs=False, perturbed=True)]
THREE_STEPS = [
    Pass(0, climbs=True, perturbed=False),
    Pass(1, climbs=True, perturbed=True),
    Pass(2, climbs=True, perturbed=True),
    Pass(3, climbs=False, perturbed=True),
]


@pytest.mark.parametrize(
    ("wrap", "expected"),
    [
        ("awp", [TWO, TWO, TWO, TWO]),
        ("awp-box", [TWO, TWO, TWO, TWO]),
        ("awp-3-steps", [THREE_STEPS] * 4),
        ("awp-interval", [[HOME], TWO, [HOME], TWO]),
        ("awp-gamma-0", [[HOME]] * 4),
        ("update", [[HOME], [AWAY], [AWAY], [AWAY]]),
        ("update-interval", [[HOME], [AWAY], [HOME], [AWAY]]),
        ("rwp", [[AWAY]] * 4),
        ("rwp-interval", [[AWAY], [HOME], [HOME], [AWAY]]),
    ],
)
def test_each_pass_says_what_it_is(wrap, expected):
    model, data = small_net(), batch()
    optimizer = WRAPS[wrap](torch.optim.SGD(model.parameters(), lr=0.1))
    assert [step_by_loop(optimizer, model, data) for _ in expected] == expected


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_a_pass_is_perturbed_where_the_weights_have_moved(wrap):
    model, data = small_net(), batch()
    optimizer = wrap(torch.optim.SGD(model.parameters(), lr=0.1))
    for _ in range(4):
        home = weights_of(model)
        for p in optimizer.passes():
            assert p.perturbed == (not same_bits(weights_of(model), home))
            closure_for(model, data)()
        assert same_bits(weights_of(model), home)
        optimizer.step()


# -- leaving early ---------------------------------------------------------------------------------


def leave_by_break(passes, at: int, backward) -> None:
    for p in passes:
        backward()
        if p.index == at:
            break


def leave_by_return(passes, at: int, backward) -> None:
    for p in passes:
        backward()
        if p.index == at:
            return


def leave_by(error: type[BaseException]):
    def leave(passes, at: int, backward) -> None:
        def loop() -> None:
            for p in passes:
                backward()
                if p.index == at:
                    raise error

        with pytest.raises(error):
            loop()

    return leave


LEAVING = {
    "break": leave_by_break,
    "return": leave_by_return,
    "exception": leave_by(ValueError),
    "KeyboardInterrupt": leave_by(KeyboardInterrupt),
}


def warmed_up(wrap: str):
    """An optimizer whose next step perturbs, whatever it climbs along."""
    model, data = small_net(torch.float32), batch(torch.float32)
    optimizer = WRAPS[wrap](torch.optim.AdamW(model.parameters(), lr=0.01))
    for _ in range(3):
        one_step(optimizer, closure_for(model, data), "loop")
    return model, data, optimizer


@pytest.mark.parametrize("leave", LEAVING.values(), ids=LEAVING)
@pytest.mark.parametrize(
    ("wrap", "at"),
    [
        *(("awp-3-steps", at) for at in range(4)),
        ("awp-box", 0),
        ("awp-box", 1),
        ("update", 0),
        ("rwp", 0),
        ("awp-interval", 0),
    ],
)
def test_a_loop_left_early_brings_the_weights_home_at_once_though_the_object_is_held(
    wrap, at, leave
):
    model, data, optimizer = warmed_up(wrap)
    twin = copy.deepcopy(model)
    home, places = weights_of(model), [p.data_ptr() for p in model.parameters()]
    gc.disable()  # "at once" is not "when garbage is collected"
    try:
        passes = optimizer.passes()
        leave(passes, at, closure_for(model, data))
        after = weights_of(model)
    finally:
        gc.enable()
    assert same_bits(after, home)
    assert [p.data_ptr() for p in model.parameters()] == places
    # Nothing of it is left behind: the step that was given up is taken again, as by a wrapper that
    # was never interrupted.
    saved = optimizer.state_dict()
    resumed = WRAPS[wrap](torch.optim.AdamW(twin.parameters(), lr=0.01))
    resumed.load_state_dict(copy.deepcopy(saved))
    for _ in range(2):
        one_step(optimizer, closure_for(model, data), "loop")
        one_step(resumed, closure_for(twin, data), "loop")
    assert same_bits(weights_of(model), weights_of(twin))


def test_an_exception_whose_traceback_is_kept_does_not_keep_the_weights_away():
    model, data, optimizer = warmed_up("awp")
    home = weights_of(model)
    caught = []

    def fail() -> None:
        for p in optimizer.passes():
            closure_for(model, data)()
            if p.perturbed:
                raise ValueError

    try:
        fail()
    except ValueError as error:
        caught.append(error)  # with its frames
        assert same_bits(weights_of(model), home)
    optimizer.state_dict()


def test_the_object_that_passes_returned_can_be_gone_through_again():
    model, data, optimizer = warmed_up("awp")
    passes = optimizer.passes()
    for _ in range(2):
        seen = [p for p in passes if closure_for(model, data)() is not None]
        assert seen == TWO
        optimizer.step()


@pytest.mark.parametrize(
    "forbidden",
    [
        lambda optimizer: optimizer.step(),
        lambda optimizer: optimizer.step(lambda: None),
        lambda optimizer: optimizer.perturb(),
        lambda optimizer: optimizer.passes(),
        lambda optimizer: optimizer.state_dict(),
        lambda optimizer: optimizer.load_state_dict(optimizer.base.state_dict()),
        copy.copy,
        copy.deepcopy,
        pickle.dumps,
    ],
    ids=[
        "step",
        "closure",
        "perturb",
        "passes",
        "state_dict",
        "load",
        "copy",
        "deepcopy",
        "pickle",
    ],
)
@pytest.mark.parametrize("wrap", ["awp", "awp-3-steps", "update", "rwp"])
def test_what_may_not_happen_while_the_weights_are_away(wrap, forbidden):
    model, data, optimizer = warmed_up(wrap)
    home = weights_of(model)
    refused = 0
    for p in optimizer.passes():
        closure_for(model, data)()
        if p.perturbed:
            away = weights_of(model)
            with pytest.raises(RuntimeError, match=r"inside a loop over passes\(\): leave it"):
                forbidden(optimizer)
            assert same_bits(weights_of(model), away)
            refused += 1
    assert refused == max(1, getattr(optimizer, "steps", 1))
    assert same_bits(weights_of(model), home)
    optimizer.step()


def test_a_loop_inside_the_same_loop_is_refused_and_leaves_it_alone():
    model, data, optimizer = warmed_up("awp")
    passes, seen = optimizer.passes(), []
    for p in passes:
        closure_for(model, data)()
        seen.append(p)
        with pytest.raises(RuntimeError, match="leave it first"):
            next(iter(passes))
    assert seen == TWO
    optimizer.step()


def test_a_loop_whose_passes_compute_nothing_warns():
    optimizer = WRAPS["awp"](torch.optim.SGD(small_net().parameters(), lr=0.1))
    with pytest.warns(UserWarning, match="no tensor is perturbed .* no selected tensor has a"):
        for _ in optimizer.passes():
            pass


@pytest.mark.parametrize("wrap", ["awp", "update", "rwp"])
def test_a_step_before_which_no_loop_ran_warns_also_after_one_that_did(wrap):
    model, data, optimizer = warmed_up(wrap)
    closure_for(model, data)()
    with pytest.warns(UserWarning, match="gradients of unperturbed weights"):
        optimizer.step()


# -- gradients -------------------------------------------------------------------------------------


def gradient_at(model: nn.Module, weights: list[Tensor], data) -> list[Tensor]:
    """By hand: MSE of W2 tanh(W1 x + b1) + b2, differentiated without autograd."""
    (w1, b1, w2, b2), (x, y) = [w.double() for w in weights], [t.double() for t in data]
    hidden = torch.tanh(x @ w1.T + b1)
    error = 2 * (hidden @ w2.T + b2 - y) / y.numel()
    below = error @ w2 * (1 - hidden**2)
    return [below.T @ x, below.sum(0), error.T @ hidden, error.sum(0)]


@pytest.mark.parametrize("steps", [1, 2])
def test_the_ascent_may_take_a_part_of_the_batch(steps):
    model, data = small_net(), batch()
    part = (data[0][:2], data[1][:2])
    home = weights_of(model)
    away = ascent(home, lambda ws: gradient_at(model, ws, part), 0.1, steps=steps)
    expected = [w - 0.3 * g for w, g in zip(home, gradient_at(model, away, data), strict=True)]
    optimizer = adversarial(steps=steps)(torch.optim.SGD(model.parameters(), lr=0.3))
    for p in optimizer.passes():
        optimizer.zero_grad()
        loss_of(model, part if p.climbs else data).backward()
    optimizer.step()
    torch.testing.assert_close(weights_of(model), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("wrap", ["awp", "awp-3-steps", "update", "rwp"])
def test_micro_batches_inside_a_pass_are_one_batch(wrap):
    model = small_net()
    twin = copy.deepcopy(model)
    pieces = WRAPS[wrap](torch.optim.AdamW(model.parameters(), lr=0.01))
    whole = WRAPS[wrap](torch.optim.AdamW(twin.parameters(), lr=0.01))
    for _ in range(4):
        data = batch()
        for _ in pieces.passes():
            pieces.zero_grad()
            for x, y in zip(data[0].chunk(3), data[1].chunk(3), strict=True):
                (loss_of(model, (x, y)) / 3).backward()
        pieces.step()
        one_step(whole, closure_for(twin, data), "closure")
    torch.testing.assert_close(weights_of(model), weights_of(twin), rtol=1e-9, atol=1e-11)


def test_clipping_after_the_loop_clips_what_the_base_steps_with():
    model, data = small_net(), batch()
    home = weights_of(model)
    away = ascent(home, lambda ws: gradient_at(model, ws, data), 0.1)
    gradients = gradient_at(model, away, data)
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    expected = [w - 0.3 * g * 0.01 / norm for w, g in zip(home, gradients, strict=True)]
    optimizer = WRAPS["awp"](torch.optim.SGD(model.parameters(), lr=0.3))
    for _ in optimizer.passes():
        closure_for(model, data)()
    assert nn.utils.clip_grad_norm_(model.parameters(), 0.01) > 0.01
    optimizer.step()
    # clip_grad_norm_ adds 1e-6 to the norm
    torch.testing.assert_close(weights_of(model), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("wrap", ["awp", "awp-3-steps", "update", "rwp"])
@pytest.mark.parametrize("older", [True, False])
def test_adding_to_older_gradients_is_an_error(wrap, older):
    """Those of the step before, or in AWP's second pass those of the first."""
    model, data, optimizer = warmed_up(wrap)
    if not older:
        optimizer.zero_grad()
    home, count = weights_of(model), optimizer.param_groups[0]["perturb_step"]

    def loop() -> None:
        for _ in optimizer.passes():
            loss_of(model, data).backward()

    if older or wrap.startswith("awp"):
        with pytest.raises(RuntimeError, match="added to older gradients"):
            loop()
    else:
        loop()
    assert same_bits(weights_of(model), home)
    assert optimizer.param_groups[0]["perturb_step"] == count
    one_step(optimizer, closure_for(model, data), "loop")


@pytest.mark.parametrize("form", ["closure", "loop"])
@pytest.mark.parametrize("wrap", ["awp", "update", "rwp"])
def test_gradients_cleared_in_a_pass_are_freed_before_it_computes_its_own(wrap, form):
    """To hold them would cost as much memory as the weights take."""
    model, data, optimizer = warmed_up(wrap)
    alive = []

    def closure() -> Tensor:
        older = [weakref.ref(p.grad) for p in model.parameters() if p.grad is not None]
        optimizer.zero_grad()
        alive.append(sum(gradient() is not None for gradient in older))
        loss = loss_of(model, data)
        loss.backward()
        return loss

    one_step(optimizer, closure, form)
    assert alive == [0] * len(alive)


def test_a_step_that_does_not_perturb_may_add_to_gradients():
    model, data = small_net(), batch()
    optimizer = WRAPS["awp-gamma-0"](torch.optim.SGD(model.parameters(), lr=0.1))
    loss_of(model, data).backward()
    once = [p.grad.clone() for p in model.parameters()]
    for _ in optimizer.passes():
        loss_of(model, data).backward()
    twice = [p.grad for p in model.parameters()]
    torch.testing.assert_close(twice, [2 * g for g in once])


@pytest.mark.parametrize("wrap", ["awp", "awp-3-steps", "awp-interval", "update", "rwp"])
def test_statistics_frozen_but_in_the_first_pass_move_once_a_step(wrap):
    model = nn.Sequential(nn.BatchNorm1d(5, momentum=0.25), small_net()).double()
    optimizer = WRAPS[wrap](torch.optim.SGD(model.parameters(), lr=0.1))
    mean, var = torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    for _ in range(4):
        data = batch()
        mean = 0.75 * mean + 0.25 * data[0].mean(0)
        var = 0.75 * var + 0.25 * data[0].var(0)
        for p in optimizer.passes():
            with freeze_running_stats(model, p.index > 0):
                closure_for(model, data)()
        optimizer.step()
    torch.testing.assert_close([model[0].running_mean, model[0].running_var], [mean, var])
    assert model[0].num_batches_tracked == 4


# -- scaled losses ---------------------------------------------------------------------------------


def scaled_loop(optimizer, model, data, scaler, *, bad: str = "") -> None:
    """``bad`` names the passes that overflow."""
    for p in optimizer.passes():
        optimizer.zero_grad()
        factor = torch.inf if str(p.index) in bad else 1.0
        scaler.scale(loss_of(model, (data[0] * factor, data[1]))).backward()
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("wrap", ["awp", "awp-3-steps", "update", "rwp"])
def test_a_scaled_loop_equals_the_unscaled_one(wrap, fused):
    model, data = small_net(torch.float32), batch(torch.float32)
    twin = copy.deepcopy(model)
    scaled, unscaled = (
        WRAPS[wrap](torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, fused=fused))
        for m in (model, twin)
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for _ in range(4):
        scaled_loop(scaled, model, data, scaler)
        one_step(unscaled, closure_for(twin, data), "loop")
    # A power of two scales without rounding; summing order may differ.
    torch.testing.assert_close(weights_of(model), weights_of(twin), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("wrap", "bad"), [("awp", "1"), ("awp", "01"), ("update", "0")])
def test_an_overflow_in_the_last_pass_skips_the_step(wrap, bad):
    model, data, optimizer = warmed_up(wrap)
    twin, saved = copy.deepcopy(model), copy.deepcopy(optimizer.state_dict())
    home = weights_of(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaled_loop(optimizer, model, data, scaler, bad=bad)
    assert same_bits(weights_of(model), home)
    assert scaler.get_scale() == 2.0**9
    # As if that step had never been tried.
    again = WRAPS[wrap](torch.optim.AdamW(twin.parameters(), lr=0.01))
    again.load_state_dict(saved)
    for _ in range(2):
        one_step(optimizer, closure_for(model, data), "loop")
        one_step(again, closure_for(twin, data), "loop")
    assert same_bits(weights_of(model), weights_of(twin))


def test_an_overflow_in_the_ascent_alone_moves_nothing_and_steps_from_home():
    model, data = small_net(torch.float32), batch(torch.float32)
    twin = copy.deepcopy(model)
    optimizer = WRAPS["awp"](torch.optim.SGD(model.parameters(), lr=0.1))
    plain = torch.optim.SGD(twin.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaled_loop(optimizer, model, data, scaler, bad="0")
    closure_for(twin, data)()
    plain.step()
    assert scaler.get_scale() == 2.0**10
    torch.testing.assert_close(weights_of(model), weights_of(twin), rtol=1e-6, atol=1e-7)


def test_ascend_inside_a_loop_is_refused():
    model, data = small_net(), batch()
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD(model.parameters(), lr=0.1), 0.1)

    def climb_too_often() -> None:
        for _ in optimizer.passes():
            closure_for(model, data)()
            optimizer.ascend()

    with pytest.raises(RuntimeError, match=r"ascend\(\) outside a perturb\(\) block"):
        climb_too_often()
