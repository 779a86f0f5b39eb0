"""``optimizer.attach(module)``: a loop that knows nothing of perturbation trains perturbed."""

import copy
import gc
import io
import pickle
import threading
import warnings
from collections import namedtuple
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from reference import same_bits, weights_of
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from torch_awp import (
    AdversarialWeightPerturbation,
    RandomWeightPerturbation,
    freeze_running_stats,
    landscape,
)

DATA = list[tuple[Tensor, Tensor]]


class Net(nn.Module):
    """Ends in its loss; has what a second forward pass can go wrong by: statistics and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Dropout(0.2))
        self.end = nn.Linear(7, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.mse_loss(self.end(self.body(x)), y)


def adversarial(**kwargs):
    return lambda base: AdversarialWeightPerturbation(base, **{"gamma": 0.1, **kwargs})


WRAPS = {
    "awp": adversarial(),
    "awp-box": adversarial(constraint="element"),
    "awp-3-steps": adversarial(steps=3, step_size=0.07),
    "awp-interval": adversarial(interval=2, start_step=1),
    "update": adversarial(ascent="update"),
    "rwp": lambda base: RandomWeightPerturbation(
        base, 0.1, generator=torch.Generator().manual_seed(5)
    ),
    "gamma-0": adversarial(gamma=0.0),
}
each_mode = pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
STEPS = 4


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def build(wrap: Any = WRAPS["awp"], model: nn.Module | None = None, **options: Any) -> Any:
    """A model, its attached optimizer and the handle."""
    model = Net() if model is None else model
    optimizer = wrap(sgd(model))
    return model, optimizer, optimizer.attach(model, **options)


def batches(number: int = STEPS) -> DATA:
    return [(torch.randn(6, 5), torch.randn(6, 3)) for _ in range(number)]


def plainly(model: nn.Module, optimizer: Any, data: DATA) -> None:
    """A loop that knows nothing of perturbation."""
    for x, y in data:
        optimizer.zero_grad()
        model(x, y).backward()
        optimizer.step()


def in_passes(model: nn.Module, optimizer: Any, data: DATA) -> None:
    for x, y in data:
        for p in optimizer.passes():
            optimizer.zero_grad()
            with freeze_running_stats(model, p.index > 0):
                model(x, y).backward()
        optimizer.step()


def states(model: nn.Module) -> list[Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def twins(wrap: Any, model: nn.Module | None = None) -> tuple[Any, Any]:
    """A model and an optimizer to attach, and the same to train by a loop that knows."""
    model = Net() if model is None else model
    twin = copy.deepcopy(model)
    return (model, wrap(sgd(model))), (twin, wrap(sgd(twin)))


def seeded(run: Any, *args: Any) -> None:
    torch.manual_seed(7)  # the masks of dropout
    run(*args)


# -- equality ------------------------------------------------------------------------------------


@each_mode
def test_a_plain_loop_equals_the_loop_over_passes_to_the_bit(wrap):
    (model, optimizer), (twin, by_passes) = twins(wrap)
    data = batches()
    optimizer.attach(model)
    seeded(plainly, model, optimizer, data)
    seeded(in_passes, twin, by_passes, data)
    assert same_bits(states(model), states(twin))


@pytest.mark.parametrize("wrap", [w for k, w in WRAPS.items() if "steps" not in k])
def test_accumulation_equals_micro_batches_that_climb_for_themselves(wrap):
    (model, optimizer), (twin, by_hand) = twins(wrap)
    optimizer.attach(model)
    data = [batches(3) for _ in range(STEPS)]
    torch.manual_seed(7)
    for pieces in data:
        optimizer.zero_grad()
        for x, y in pieces:
            model(x, y).backward()
        optimizer.step()
    torch.manual_seed(7)
    for pieces in data:
        totals: list[Tensor | None] = [None for _ in twin.parameters()]
        for x, y in pieces:
            clean = by_hand._ascent_steps > 0 and by_hand._is_due()
            by_hand.zero_grad()
            if clean:
                twin(x, y).backward()
            with by_hand.perturb(), freeze_running_stats(twin, clean):
                by_hand.zero_grad()
                twin(x, y).backward()
            grads = [param.grad for param in twin.parameters()]
            totals = [g if t is None else t + g for t, g in zip(totals, grads, strict=True)]
        for param, total in zip(twin.parameters(), totals, strict=True):
            param.grad = total
        by_hand.step()
    assert same_bits(states(model), states(twin))


@each_mode
def test_a_closure_is_evaluated_once_and_equals_the_plain_loop(wrap):
    (model, optimizer), (twin, plain) = twins(wrap)
    optimizer.attach(model)
    plain.attach(twin)
    data, losses = batches(), []

    def by_closure():
        for x, y in data:

            def closure(x=x, y=y):
                loss = model(x, y)
                optimizer.zero_grad()  # where Lightning does it
                loss.backward()
                losses.append(loss)
                return loss

            assert optimizer.step(closure) is losses[-1]

    seeded(by_closure)
    seeded(plainly, twin, plain, data)
    assert len(losses) == STEPS
    assert same_bits(states(model), states(twin))


def test_lbfgs_takes_the_closure_at_perturbed_weights():
    model = Net()
    optimizer = WRAPS["awp"](torch.optim.LBFGS(model.parameters(), max_iter=3))
    optimizer.attach(model)
    (x, y), perturbed = batches(1)[0], []

    def closure():
        optimizer.zero_grad()
        loss = model(x, y)
        perturbed.append(optimizer.current_pass.perturbed)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert len(perturbed) > 1
    assert all(perturbed)


# -- when and what -------------------------------------------------------------------------------


def test_weights_are_away_from_the_forward_pass_until_the_backward_pass_has_ended():
    model, optimizer, _ = build()
    home = weights_of(model)
    places = [param.data_ptr() for param in model.parameters()]
    loss = model(*batches(1)[0])
    moved = [not torch.equal(p, w) for p, w in zip(model.parameters(), home, strict=True)]
    assert moved == [param.ndim > 1 for param in model.parameters()]
    assert optimizer.current_pass.perturbed
    loss.backward()
    assert same_bits(weights_of(model), home)
    assert [param.data_ptr() for param in model.parameters()] == places
    assert optimizer.current_pass is None


def test_a_step_that_is_not_due_is_the_bases_own():
    model, optimizer, _ = build(adversarial(start_step=1))
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    plainly(model, optimizer, batches(2))
    assert len(calls) == 1 + 2


def test_every_micro_batch_of_a_due_step_perturbs():
    model, optimizer, _ = build(adversarial(interval=2))
    perturbed = []
    for x, y in batches(6):
        loss = model(x, y)
        perturbed.append(optimizer.current_pass is not None)
        loss.backward()
        if len(perturbed) % 2 == 0:
            optimizer.step()
    assert perturbed == [True, True, False, False, True, True]


def test_only_tensors_of_the_module_move_and_only_it_runs_twice():
    model = Net()
    optimizer = WRAPS["awp"](sgd(model))
    optimizer.attach(model.end, loss=lambda output, hidden: output.square().mean())
    calls = {"body": 0, "end": 0}
    for name in calls:

        def count(*_, name=name):
            calls[name] += 1

        getattr(model, name).register_forward_hook(count)
    home = {name: param.detach().clone() for name, param in model.named_parameters()}
    loss = model(*batches(1)[0])
    moved = {n for n, param in model.named_parameters() if not torch.equal(param, home[n])}
    assert moved == {"end.weight"}
    loss.backward()
    assert calls == {"body": 1, "end": 2}
    assert all(param.grad is not None for param in model.parameters())
    optimizer.step()


def test_the_update_of_a_part_is_kept_for_it_alone():
    model = Net()
    optimizer = WRAPS["update"](sgd(model))
    optimizer.attach(model.end)
    plainly(model, optimizer, batches(1))
    assert len(optimizer._run.update) == 1


def test_a_climb_changes_no_gradient_and_fires_no_accumulation_hook():
    model, *_held = build(adversarial(steps=2))
    older = torch.ones(3, 7)
    model.end.weight.grad = older
    fired: list[int] = []
    for param in model.parameters():
        param.register_post_accumulate_grad_hook(lambda _: fired.append(1))
    loss = model(*batches(1)[0])
    assert not fired
    assert model.end.weight.grad is older
    assert model.body[0].weight.grad is None
    loss.backward()
    assert len(fired) == len(list(model.parameters()))


def test_the_climbs_graph_is_freed_before_the_pass_that_counts():
    alive: list[list[bool]] = []
    graphs: list[Any] = []

    class Watching(Net):
        def forward(self, x, y):
            import weakref

            gc.collect()
            alive.append([graph() is not None for graph in graphs])
            hidden = self.body(x)
            graphs.append(weakref.ref(hidden))
            return nn.functional.mse_loss(self.end(hidden), y)

    model, *_held = build(adversarial(steps=2), Watching())
    model(*batches(1)[0]).backward()
    assert alive == [[], [False], [False, False]]


def test_current_pass_tells_climbs_from_the_pass_that_counts():
    model, optimizer, _ = build(adversarial(steps=2))
    seen = []
    model.body.register_forward_hook(lambda *_: seen.append(optimizer.current_pass))
    model(*batches(1)[0]).backward()
    assert [(p.index, p.climbs, p.perturbed) for p in seen] == [
        (0, True, False),
        (1, True, True),
        (2, False, True),
    ]
    assert seen[0].inputs == [p for p in model.parameters() if p.ndim > 1]


def test_mixed_precision_parameters_come_back_to_the_bit():
    model = Net().to(torch.bfloat16)
    optimizer = WRAPS["awp"](sgd(model))
    optimizer.attach(model)
    home = weights_of(model)
    x, y = batches(1)[0]
    model(x.bfloat16(), y.bfloat16()).backward()
    assert same_bits(weights_of(model), home)


def test_one_autocast_region_around_everything_sees_each_weight_where_it_is():
    (model, optimizer), (twin, by_passes) = twins(WRAPS["awp"])
    optimizer.attach(model)
    data = batches()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seeded(plainly, model, optimizer, data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seeded(in_passes, twin, by_passes, data)
    # Backward passes in the region are autocast, the climb's is not: close, not equal.
    for measured, expected in zip(weights_of(model), weights_of(twin), strict=True):
        torch.testing.assert_close(measured, expected, rtol=0.05, atol=0.05)
    assert not same_bits(weights_of(model), weights_of(Net()))


# -- the climb's loss ----------------------------------------------------------------------------

Named = namedtuple("Named", "logits loss")


@dataclass
class Structured:
    loss: Tensor
    logits: Tensor


OUTPUTS = {
    "scalar": lambda loss, logits: loss,
    "attribute": lambda loss, logits: Structured(loss, logits),
    "named tuple": lambda loss, logits: Named(logits, loss),
    "key": lambda loss, logits: {"logits": logits, "loss": loss},
    "first of a tuple": lambda loss, logits: (loss, logits),
    "sum of a dictionary": lambda loss, logits: {
        "a": 0.25 * loss,
        "b": 0.75 * loss,
        "accuracy": loss.detach(),
        "logits": logits,
    },
}


LOSS_OF = {
    "scalar": lambda output: output,
    "attribute": lambda output: output.loss,
    "named tuple": lambda output: output.loss,
    "key": lambda output: output["loss"],
    "first of a tuple": lambda output: output[0],
    "sum of a dictionary": lambda output: output["a"] + output["b"],
}


class Returning(nn.Module):
    def __init__(self, output: Any) -> None:
        super().__init__()
        self.net, self.output = nn.Linear(5, 3), output

    def forward(self, x: Tensor, y: Tensor) -> Any:
        logits = self.net(x)
        return self.output(nn.functional.mse_loss(logits, y), logits)


@pytest.mark.parametrize("output", OUTPUTS)
def test_the_loss_is_found_in_what_the_module_returns(output):
    (model, optimizer), (twin, by_passes) = twins(WRAPS["awp"], Returning(OUTPUTS[output]))
    optimizer.attach(model)
    x, y = batches(1)[0]
    LOSS_OF[output](model(x, y)).backward()
    optimizer.step()
    for _ in by_passes.passes():
        by_passes.zero_grad()
        nn.functional.mse_loss(twin.net(x), y).backward()
    by_passes.step()
    for measured, expected in zip(weights_of(model), weights_of(twin), strict=True):
        torch.testing.assert_close(measured, expected)


@pytest.mark.parametrize("output", ["attribute", "named tuple", "key", "first of a tuple"])
def test_a_training_with_another_loss_than_that_of_the_output_warns_once(output):
    """As TRL's preference trainers have it: the model returns a loss, another is trained."""
    model, optimizer, handle = build(model=Returning(OUTPUTS[output]))
    logits = []
    model.net.register_forward_hook(lambda module, args, output: logits.append(output))

    def train() -> None:
        for x, y in batches(2):
            optimizer.zero_grad()
            model(x, y)
            logits[-1].abs().sum().backward()
            optimizer.step()

    with pytest.warns(UserWarning, match="the training has another loss") as caught:
        train()
    assert len(caught) == 1
    handle.remove()
    optimizer.attach(model, loss=lambda *_: logits[-1].abs().sum())
    train()


def test_a_warning_that_is_an_error_at_the_end_of_a_backward_pass_finds_the_weights_restored():
    model, _optimizer, _handle = build(model=Returning(OUTPUTS["attribute"]))
    home = weights_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="the training has another loss"):
            model(*batches(1)[0]).logits.abs().sum().backward()
        assert same_bits(weights_of(model), home)


@pytest.mark.parametrize(
    "output",
    [
        lambda loss, logits: logits,
        lambda loss, logits: {"logits": logits},
        lambda loss, logits: {"loss": None, "logits": logits},
        lambda loss, logits: Structured(None, logits),
        lambda loss, logits: (logits, loss),
        lambda loss, logits: [loss],
        lambda loss, logits: logits[:1, :1],
    ],
)
def test_a_loss_that_is_not_found_is_an_error_that_names_the_cure(output):
    model, *_held = build(model=Returning(output))
    home = weights_of(model)
    with pytest.raises(RuntimeError, match=r"loss=.*ends in its loss.*one pass"):
        model(*batches(1)[0])
    assert same_bits(weights_of(model), home)
    model, optimizer, _ = build(WRAPS["rwp"], Returning(output))
    output = model(*batches(1)[0])
    assert optimizer.current_pass.perturbed  # needs no loss


def test_a_given_loss_sees_output_and_arguments():
    model = nn.Linear(5, 3)
    (x, y), seen = batches(1)[0], []

    def loss(output, *args, **kwargs):
        seen.append((output.shape, args, kwargs))
        return nn.functional.mse_loss(output, y)

    _, *_held = build(model=model, loss=loss)
    model(input=x)
    assert seen == [((6, 3), (), {"input": x})]


@pytest.mark.parametrize("bad", [lambda output, x: output, lambda output, x: 3.0])
def test_a_given_loss_must_be_a_scalar_tensor(bad):
    model, *_held = build(model=nn.Linear(5, 3), loss=bad)
    with pytest.raises(RuntimeError, match="no scalar loss"):
        model(torch.randn(6, 5))


def test_a_loss_that_depends_on_no_tensor_that_moves_warns_once():
    class Constant(Net):
        def forward(self, x, y):
            return x.sum() + self.end.bias.sum()

    model, optimizer, _ = build(model=Constant())
    with pytest.warns(UserWarning, match="no tensor is perturbed") as caught:
        plainly(model, optimizer, batches(2))
    assert len(caught) == 1


def test_float16_autocast_without_a_scaled_loss_warns_once():
    model, optimizer, _ = build()
    with (
        pytest.warns(UserWarning, match="scaler.scale") as caught,
        torch.autocast("cpu", dtype=torch.float16),
    ):
        plainly(model, optimizer, batches(2))
    assert len(caught) == 1


def test_float16_autocast_inside_the_modules_forward_warns_too():
    class Inside(Net):
        def forward(self, x, y):
            with torch.autocast("cpu", dtype=torch.float16):
                return super().forward(x, y)

    model, optimizer, _ = build(model=Inside())
    with pytest.warns(UserWarning, match="scaler.scale") as caught:
        plainly(model, optimizer, batches(2))
    assert len(caught) == 1


@pytest.mark.parametrize("overflows", [False, True])
def test_grad_scaler_steps_or_skips_and_the_weights_are_home(overflows):
    model, optimizer, _ = build()
    twin = copy.deepcopy(model)
    plain = WRAPS["awp"](sgd(twin))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    home, (x, y) = weights_of(model), batches(1)[0]
    torch.manual_seed(7)
    loss = model(x, y)
    scaler.scale(loss * (float("inf") if overflows else 1.0)).backward()
    assert same_bits(weights_of(model), home)
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    seeded(in_passes, twin, plain, [(x, y)])
    assert same_bits(weights_of(model), home if overflows else weights_of(twin))
    assert optimizer.param_groups[0]["perturb_step"] == (0 if overflows else 1)


# -- several forward passes ----------------------------------------------------------------------


def test_a_further_forward_pass_stays_and_the_climb_warns_once():
    model, optimizer, _ = build()
    first, second = batches(2)
    one = model(*first)
    away = weights_of(model)
    with pytest.warns(UserWarning, match="v comes from the loss of the first") as caught:
        two, three = model(*second), model(*second)
    assert len(caught) == 1
    assert same_bits(weights_of(model), away)
    (one + two + three).backward()
    assert optimizer.current_pass is None
    optimizer.step()


def test_modes_of_one_pass_make_several_forward_passes_without_a_word():
    model, optimizer, _ = build(WRAPS["rwp"])
    first, second = batches(2)
    (model(*first) + model(*second)).backward()
    optimizer.step()


def test_an_output_that_is_dropped_is_restored_before_the_next_forward_pass():
    model, *_held = build()
    home = weights_of(model)
    first, second = batches(2)
    model(*first)  # not kept
    assert not same_bits(weights_of(model), home)
    seen = []
    model.body.register_forward_pre_hook(lambda *_: seen.append(weights_of(model)))
    model(*second).backward()
    assert same_bits(seen[0], home)  # the climb of the second
    assert not same_bits(seen[1], home)


@pytest.mark.parametrize("how", ["no_grad", "inference_mode", "eval"])
def test_an_evaluation_in_between_sees_w_and_leaves_the_backward_pass_valid(how):
    (model, optimizer), (twin, by_passes) = twins(WRAPS["awp"])
    optimizer.attach(model)
    home, (x, y), seen = weights_of(model), batches(1)[0], []
    torch.manual_seed(7)
    loss = model(x, y)
    away = weights_of(model)
    hook = model.body.register_forward_hook(lambda *_: seen.append(weights_of(model)))
    if how == "eval":
        model.eval()
        model(x, y)
        model.train()
    else:
        without = torch.no_grad() if how == "no_grad" else torch.inference_mode()
        with without, freeze_running_stats(model):
            model(x, y)
    hook.remove()
    assert same_bits(seen[0], home)
    assert same_bits(weights_of(model), away)
    assert optimizer.current_pass.perturbed
    loss.backward()
    optimizer.step()
    seeded(in_passes, twin, by_passes, [(x, y)])
    assert same_bits(states(model), states(twin))


def test_an_evaluation_that_fails_in_between_leaves_the_weights_away():
    model, *_held = build()
    x, y = batches(1)[0]
    loss = model(x, y)
    away = weights_of(model)
    with torch.no_grad(), pytest.raises(RuntimeError, match="mat1 and mat2"):
        model(torch.randn(6, 4), y)
    assert same_bits(weights_of(model), away)
    loss.backward()


def test_a_backward_pass_through_an_evaluation_while_weights_are_away_is_an_error():
    model, *_held = build()
    x, y = batches(1)[0]
    loss = model(x, y)
    model.eval()
    evaluated = model(x, y)
    model.train()
    with pytest.raises(RuntimeError, match="one through an evaluation"):
        evaluated.backward()
    loss.backward()


def test_an_evaluation_between_steps_sees_w():
    model, optimizer, _ = build()
    plainly(model, optimizer, batches(1))
    home, seen = weights_of(model), []
    model.body.register_forward_hook(lambda *_: seen.append(weights_of(model)))
    with torch.no_grad():
        model(*batches(1)[0])
    model.eval()
    model(*batches(1)[0]).backward()
    assert same_bits(seen[0] + seen[1], home + home)


def stepped(optimizer: torch.optim.Optimizer) -> None:
    with pytest.warns(UserWarning, match="without a gradient"):
        optimizer.step()


@pytest.mark.parametrize(
    "restores",
    [
        lambda model, optimizer, handle: stepped(optimizer),
        lambda model, optimizer, handle: stepped(optimizer.base),
        lambda model, optimizer, handle: optimizer.state_dict(),
        lambda model, optimizer, handle: optimizer.load_state_dict(optimizer.state_dict()),
        lambda model, optimizer, handle: model.state_dict(),
        lambda model, optimizer, handle: model.body.state_dict(),
        lambda model, optimizer, handle: nn.Sequential(model).state_dict(),
        lambda model, optimizer, handle: handle.remove(),
    ],
    ids=["step", "base", "state", "load", "module", "part", "around", "remove"],
)
def test_what_reads_or_writes_the_weights_restores_them(restores):
    model, optimizer, handle = build()
    home = weights_of(model)
    loss = model(*batches(1)[0])
    assert not same_bits(weights_of(model), home)
    restores(model, optimizer, handle)
    assert same_bits(weights_of(model), home)
    with pytest.raises(RuntimeError, match=r"other weights|modified by an inplace"):
        loss.backward()


def test_a_state_loaded_while_weights_are_away_stays():
    model, *_held = build()
    other = Net().state_dict()
    loss = model(*batches(1)[0])
    model.load_state_dict(other)
    del loss
    model(*batches(1)[0]).backward()
    assert torch.equal(model.end.weight, other["end.weight"])


def test_zero_grad_does_not_restore():
    model, optimizer, _ = build()
    loss = model(*batches(1)[0])
    away = weights_of(model)
    optimizer.zero_grad()
    model.zero_grad()
    assert same_bits(weights_of(model), away)
    loss.backward()


def test_an_exception_in_forward_restores_at_once():
    model, optimizer, _ = build(WRAPS["rwp"])
    home = weights_of(model)
    hook = model.body.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(*batches(1)[0])
    assert same_bits(weights_of(model), home)
    hook.remove()
    plainly(model, optimizer, batches(1))


@pytest.mark.parametrize("where", ["climb", "forward", "backward"])
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_after_an_exception_training_goes_on_as_if_it_had_not_been(where, kind):
    (model, optimizer), (twin, by_passes) = twins(WRAPS["awp"])
    optimizer.attach(model)
    home, first, buffers = weights_of(model), batches(1), copy.deepcopy(dict(model.named_buffers()))

    def fail(*_):
        climbs = optimizer.current_pass.climbs
        if climbs == (where == "climb"):
            raise kind

    if where == "backward":
        hook = model.body[0].weight.register_hook(
            lambda _: None if optimizer.current_pass.climbs else fail()
        )
    else:
        hook = model.end.register_forward_pre_hook(fail)
    with pytest.raises(kind):
        plainly(model, optimizer, first)
    hook.remove()
    model.load_state_dict({**model.state_dict(), **buffers})
    assert same_bits(weights_of(model), home)
    data = batches()
    seeded(plainly, model, optimizer, data)
    seeded(in_passes, twin, by_passes, data)
    assert same_bits(states(model), states(twin))


def test_after_an_exception_in_backward_the_next_entry_restores():
    model, *_held = build(WRAPS["rwp"])
    home, seen = weights_of(model), []

    def fail(_):
        raise ZeroDivisionError

    handle = model.body[0].weight.register_hook(fail)
    loss = model(*batches(1)[0])
    with pytest.raises(ZeroDivisionError):
        loss.backward()
    handle.remove()
    model.register_forward_hook(lambda *_: seen.append(weights_of(model)))
    with torch.no_grad():
        model(*batches(1)[0])  # while the failed graph is alive
    assert same_bits(seen[0], home)


def test_paused_forward_passes_perturb_nothing():
    model, optimizer, handle = build()
    home = weights_of(model)
    with handle.paused(), handle.paused():
        model(*batches(1)[0]).backward()
        assert optimizer.current_pass is None
    assert same_bits(weights_of(model), home)
    with pytest.warns(UserWarning, match="paused"):
        optimizer.step()


def test_a_gradient_penalty_is_taken_in_paused_passes_at_the_same_weights():
    class Critic(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1))

        def forward(self, x):
            return self.net(x).mean()

    def penalized(model, x, pause):
        loss = model(x)
        with pause():
            point = x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(model(point), point, create_graph=True)
            return loss + slope.square().sum()

    model = Critic()
    twin = copy.deepcopy(model)
    optimizer = WRAPS["rwp"](sgd(model))
    by_passes = WRAPS["rwp"](sgd(twin))
    handle = optimizer.attach(model)
    for x, _ in batches():
        optimizer.zero_grad()
        penalized(model, x, handle.paused).backward()
        optimizer.step()
        for _ in by_passes.passes():
            by_passes.zero_grad()
            penalized(twin, x, torch.enable_grad).backward()
        by_passes.step()
    assert same_bits(states(model), states(twin))


def test_a_landscape_of_an_attached_model_is_that_of_the_model():
    model, optimizer, handle = build()
    plainly(model, optimizer, batches(1))
    twin, (x, y) = copy.deepcopy(model), batches(1)[0]
    direction = landscape.filter_normalized_direction(model)
    with handle.paused():
        measured = landscape.loss_curve(model, lambda net: net(x, y), direction, [-0.5, 0.0, 0.5])
    expected = landscape.loss_curve(twin, lambda net: net(x, y), direction, [-0.5, 0.0, 0.5])
    assert same_bits([measured], [expected])


# -- the end of a backward pass ------------------------------------------------------------------


def test_a_second_backward_pass_through_the_same_graph_is_an_error():
    model, *_held = build()
    loss = model(*batches(1)[0])
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"other weights|modified by an inplace"):
        loss.backward()


def test_a_second_backward_pass_that_torch_lets_pass_is_an_error_too():
    model = nn.Sequential(nn.Embedding(4, 3))
    optimizer = WRAPS["rwp"](sgd(model))
    optimizer.attach(model)
    loss = model(torch.tensor([0, 1])).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward pass"):
        loss.backward()


def test_several_losses_in_one_backward_call_are_one_backward_pass():
    model, optimizer, _ = build(WRAPS["rwp"], nn.Linear(5, 3))
    home = weights_of(model)
    output = model(torch.randn(6, 5))
    torch.autograd.backward([output.sum(), output.square().sum()])
    assert same_bits(weights_of(model), home)
    optimizer.step()


@each_mode
def test_non_reentrant_checkpoints_inside_and_around_equal_none(wrap):
    class Checkpointed(Net):
        def forward(self, x, y):
            hidden = checkpoint(self.body, x, use_reentrant=False)
            return nn.functional.mse_loss(checkpoint(self.end, hidden, use_reentrant=False), y)

    plain, inside = Net(), Checkpointed()
    for model in (plain, inside):
        model.body[1] = nn.LayerNorm(7)  # a recomputation moves statistics again, by design
    inside.load_state_dict(plain.state_dict())
    around = copy.deepcopy(plain)
    runs = []
    data = batches()
    for model in (plain, inside, around):
        optimizer = wrap(sgd(model))
        optimizer.attach(model)
        call = model
        if model is around:

            def call(x, y, model=model):
                return checkpoint(model, x, y, use_reentrant=False)

        torch.manual_seed(3)  # noise without a generator of its own
        seeded(plainly, call, optimizer, data)
        runs.append(weights_of(model))
    assert same_bits(runs[0], runs[1])
    assert same_bits(runs[0], runs[2])


# -- counting, and who may attach ----------------------------------------------------------------


def test_passes_and_perturb_of_an_attached_optimizer_are_errors():
    _, optimizer, handle = build()
    for form in (optimizer.passes, optimizer.perturb):
        with pytest.raises(RuntimeError, match=r"attached.*handle\.remove"):
            form()
    handle.remove()
    optimizer.passes()


def test_one_optimizer_is_attached_once():
    model, optimizer, handle = build()
    with pytest.raises(RuntimeError, match="attached optimizer"):
        optimizer.attach(model)
    handle.remove()
    optimizer.attach(model)


def test_a_second_optimizer_on_the_same_tensors_is_an_error():
    model, _, handle = build()
    for part in (model, model.end, nn.Sequential(model)):
        with pytest.raises(RuntimeError, match="another optimizer"):
            WRAPS["rwp"](sgd(model)).attach(part)
    handle.remove()
    WRAPS["rwp"](sgd(model)).attach(model)


def test_two_optimizers_with_tensors_of_their_own_share_a_module():
    model = Net()
    body, end = (WRAPS["awp"](sgd(part)) for part in (model.body, model.end))
    body.attach(model)
    end.attach(model)
    home = weights_of(model)
    for x, y in batches(2):
        body.zero_grad()
        end.zero_grad()
        loss = model(x, y)
        assert body.current_pass.perturbed
        assert end.current_pass.perturbed
        loss.backward()
        if x is not None:
            assert all(param.grad is not None for param in model.parameters())
        body.step()
        end.step()
    assert not same_bits(weights_of(model), home)
    before = weights_of(model)
    model(*batches(1)[0]).backward()
    assert same_bits(weights_of(model), before)


def test_an_optimizer_that_is_gone_drives_nothing_and_blocks_nobody():
    model, optimizer, handle = build()
    del optimizer, handle
    gc.collect()
    home = weights_of(model)
    loss = model(*batches(1)[0])
    assert same_bits(weights_of(model), home)
    loss.backward()
    WRAPS["rwp"](sgd(model)).attach(model)


def test_a_removed_handle_leaves_no_hook():
    model, optimizer, handle = build()
    handle.remove()
    handle.remove()
    fresh = Net()
    for part, plain in zip(model.modules(), fresh.modules(), strict=True):
        for name in ("_forward_hooks", "_forward_pre_hooks", "_state_dict_pre_hooks"):
            assert len(getattr(part, name)) == len(getattr(plain, name))
    with pytest.warns(UserWarning, match="optimizer.attach"):
        plainly(model, optimizer, batches(1))


def test_two_wrappers_of_one_base_only_the_newer_counts():
    model, older, _ = build()
    newer = WRAPS["awp"](older.base)
    home = weights_of(model)
    loss = model(*batches(1)[0])
    assert same_bits(weights_of(model), home)
    loss.backward()
    with pytest.raises(RuntimeError, match="wrapped again"):
        older.step()
    with pytest.warns(UserWarning, match="optimizer.attach"):
        newer.step()
    newer.attach(model)
    loss = model(*batches(1)[0])
    assert newer.current_pass.perturbed
    loss.backward()
    newer.step()


@pytest.mark.parametrize(
    ("module", "error", "match"),
    [
        (lambda model: model.parameters, TypeError, "nn.Module"),
        (nn.DataParallel, ValueError, "DataParallel"),
        (lambda model: nn.Linear(2, 2), RuntimeError, "0 tensors of Linear"),
        (
            lambda model: type("Engine", (nn.Module,), {"__module__": "deepspeed.runtime"})(),
            ValueError,
            "DeepSpeed",
        ),
    ],
)
def test_what_cannot_be_attached_is_refused_by_name(module, error, match):
    model = Net()
    with pytest.raises(error, match=match):
        WRAPS["awp"](sgd(model)).attach(module(model))


def test_a_loss_that_cannot_be_called_is_refused():
    model = Net()
    with pytest.raises(TypeError, match="callable"):
        WRAPS["awp"](sgd(model)).attach(model, loss=3.0)


def test_data_parallel_around_an_attached_module_is_an_error():
    def replica_of(module):  # as nn.parallel.replicate makes it, which needs two devices
        replica = module._replicate_for_data_parallel()
        for name, param in module._parameters.items():
            setattr(replica, name, param.detach().clone())
        for name, part in module._modules.items():
            replica._modules[name] = replica_of(part)
        return replica

    model, *_held = build()
    with pytest.raises(RuntimeError, match="by DataParallel"):
        replica_of(model)(*batches(1)[0])


@pytest.mark.parametrize("where", ["inside", "around"])
def test_reentrant_checkpoints_are_an_error_that_names_the_cure(where):
    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.end = nn.Linear(5, 3), nn.Linear(3, 3)

        def forward(self, x):
            inside = where == "inside"
            x = checkpoint(self.net, x, use_reentrant=True) if inside else self.net(x)
            return self.end(x).square().mean()

    model, *_held = build(model=Inside())
    home, x = weights_of(model), torch.randn(6, 5, requires_grad=True)
    call = model if where == "inside" else partial(checkpoint, model, use_reentrant=True)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        call(x).backward()
    assert same_bits(weights_of(model), home)


def test_parameters_replaced_after_attach_are_an_error():
    model, *_held = build()
    model.end = nn.Linear(7, 3)
    with pytest.raises(RuntimeError, match="parameters replaced"):
        model(*batches(1)[0])


def test_parameters_added_after_attach_are_perturbed():
    model, optimizer, _ = build()
    model.body.append(nn.Linear(7, 7))
    optimizer.add_param_group({"params": model.body[-1].parameters()})
    home = model.body[-1].weight.detach().clone()
    loss = model(*batches(1)[0])
    assert not torch.equal(model.body[-1].weight, home)
    loss.backward()


# -- what silence would hide ---------------------------------------------------------------------


def test_a_module_that_is_never_called_warns_at_the_step():
    model, optimizer, _ = build()
    x, y = batches(1)[0]
    nn.functional.mse_loss(model.end(model.body(x)), y).backward()
    with pytest.warns(UserWarning, match="attached to a module, but its forward was never called"):
        optimizer.step()


def test_fine_tuning_in_evaluation_mode_warns_at_the_step():
    model, optimizer, _ = build()
    model.eval()
    with pytest.warns(UserWarning, match="in evaluation mode") as caught:
        plainly(model, optimizer, batches(2))
    assert len(caught) == 1


def test_a_closure_that_calls_the_module_in_evaluation_mode_warns():
    model, optimizer, _ = build()
    model.eval()

    def closure():
        optimizer.zero_grad()
        loss = model(*batches(1)[0])
        loss.backward()
        return loss

    with pytest.warns(UserWarning, match="evaluation mode"):
        optimizer.step(closure)


def test_an_output_that_needs_no_gradient_restores_at_once_and_warns_at_the_step():
    class Detached(Net):
        def forward(self, x, y):
            return super().forward(x, y).detach()

    model, optimizer, _ = build(WRAPS["rwp"], Detached())
    home = weights_of(model)
    model(*batches(1)[0])
    assert same_bits(weights_of(model), home)
    with pytest.warns(UserWarning, match="no backward pass went through its output"):
        optimizer.step()


def test_a_backward_pass_inside_the_forward_counts():
    class Pipeline(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(5, 3)

        def forward(self, x):
            loss = self.net(x).square().mean()
            loss.backward()
            return loss.detach()

    model, optimizer, _ = build(WRAPS["rwp"], Pipeline())
    model(torch.randn(6, 5))
    optimizer.step()


def test_nothing_selected_in_the_module_warns_once():
    model = nn.Sequential(nn.LayerNorm(5))
    optimizer = WRAPS["awp"](sgd(model))
    optimizer.attach(model, loss=lambda output, *_: output.sum())
    with pytest.warns(UserWarning, match="no tensor is perturbed") as caught:
        plainly(lambda x, y: model(x).sum(), optimizer, batches(2))
    assert len(caught) == 1


def test_writing_to_a_perturbed_weight_warns():
    model, *_held = build()
    loss = model(*batches(1)[0])
    with torch.no_grad():
        model.end.bias.zero_()
        model.end.weight.zero_()
    with pytest.warns(UserWarning, match="written to while it was perturbed"):
        model.state_dict()
    del loss


# -- recursion, sharing, threads -----------------------------------------------------------------


class Recursive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(5, 5)

    def forward(self, x: Tensor, depth: int = 3) -> Tensor:
        x = self.net(x).tanh()
        return x.square().mean() if depth == 0 else self(x, depth - 1)


class Shared(nn.Module):
    """The same layers twice, and one tensor under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(self.first(x)).tanh()).square().mean()


@pytest.mark.parametrize("cls", [Recursive, Shared])
def test_recursion_and_shared_weights_equal_the_loop(cls):
    (model, optimizer), (twin, by_passes) = twins(WRAPS["awp"], cls())
    optimizer.attach(model)
    for x, _ in batches():
        optimizer.zero_grad()
        model(x).backward()
        optimizer.step()
        for _ in by_passes.passes():
            by_passes.zero_grad()
            twin(x).backward()
        by_passes.step()
    assert same_bits(states(model), states(twin))


def test_an_interrupt_in_a_recursion_is_not_taken_for_a_call_that_runs():
    model, optimizer, _ = build(WRAPS["rwp"], Recursive())
    home, x = weights_of(model), torch.randn(6, 5)
    calls: list[int] = []

    def fail(*_):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    hook = model.net.register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt) as held:  # with all frames, as a notebook holds them
        model(x)
    hook.remove()
    loss = model(x)
    loss.backward()
    assert same_bits(weights_of(model), home)
    assert held is not None
    optimizer.step()


def test_an_evaluation_in_between_of_a_module_that_calls_itself_is_at_w_throughout():
    model, optimizer, _ = build(WRAPS["rwp"], Recursive())
    home, x = weights_of(model), torch.randn(6, 5)
    loss = model(x)
    away, seen = weights_of(model), []

    def look(*_):
        seen.append(same_bits(weights_of(model), home))
        if len(seen) == 6:
            raise KeyboardInterrupt

    hook = model.net.register_forward_hook(look)
    with torch.no_grad():
        model(x)
    with torch.no_grad(), pytest.raises(KeyboardInterrupt):
        model(x)
    with torch.no_grad():
        model(x)
    hook.remove()
    assert all(seen)
    assert len(seen) == 4 + 2 + 4
    assert same_bits(weights_of(model), away)
    loss.backward()
    assert same_bits(weights_of(model), home)
    optimizer.step()


def test_a_call_from_another_thread_while_weights_are_away_is_an_error():
    model, *_held = build()
    data = batches(1)[0]
    loss = model(*data)
    errors: list[Exception] = []

    def evaluate():
        try:
            with torch.no_grad():
                model(*data)
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=evaluate)
    thread.start()
    thread.join()
    assert "thread" in str(errors[0])
    loss.backward()
    thread = threading.Thread(target=lambda: model(*data).backward())
    thread.start()  # one after the other is fine
    thread.join()
    assert len(errors) == 1


# -- copies --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda model: AveragedModel(model).module,
        lambda model: pickle.loads(pickle.dumps(model)),
        lambda model: copy.deepcopy(nn.Sequential(model))[0],
    ],
    ids=["deepcopy", "AveragedModel", "pickle", "around"],
)
def test_a_copy_of_the_module_drives_nothing(copied):
    model, optimizer, _ = build()
    twin = copied(model)
    homes = weights_of(model), weights_of(twin)
    loss = twin(*batches(1)[0])
    assert same_bits(weights_of(model) + weights_of(twin), homes[0] + homes[1])
    assert optimizer.current_pass is None
    loss.backward()
    twin.state_dict()
    other = WRAPS["awp"](sgd(twin))
    other.attach(twin)
    plainly(twin, other, batches(1))
    plainly(model, optimizer, batches(1))


@pytest.mark.parametrize("first", ["model", "optimizer"])
@each_mode
def test_a_copied_pair_trains_like_the_original(wrap, first):
    model, optimizer, _ = build(wrap)
    plainly(model, optimizer, batches(1))
    if first == "model":
        twin, its_optimizer = copy.deepcopy((model, optimizer))
    else:
        its_optimizer, twin = copy.deepcopy((optimizer, model))
    home, data = weights_of(model), batches()
    seeded(plainly, twin, its_optimizer, data)
    assert same_bits(weights_of(model), home)
    seeded(plainly, model, optimizer, data)
    assert same_bits(states(model), states(twin))
    if its_optimizer.gamma:
        assert its_optimizer._attached


def test_a_copy_of_the_optimizer_alone_is_not_attached():
    model, optimizer, _ = build()
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        twin.passes()
        assert not twin._attached
    plainly(model, optimizer, batches(1))


def test_copies_while_weights_are_away_are_errors():
    model, optimizer, _ = build()
    loss = model(*batches(1)[0])
    for held in (model, optimizer):
        for make in (copy.deepcopy, pickle.dumps):
            with pytest.raises(RuntimeError, match="copying or pickling"):
                make(held)
    loss.backward()


def test_nothing_keeps_a_model_alive():
    import weakref

    model, optimizer, handle = build()
    plainly(model, optimizer, batches(1))
    gone = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert gone() is None  # by counting, without the collector of cycles
        del handle
        optimizer.passes()  # an error while it is attached
    finally:
        gc.enable()


# -- trained on, resumed -------------------------------------------------------------------------


@each_mode
def test_a_run_resumes_to_the_same_bits(wrap):
    model, optimizer, _ = build(wrap)
    data = batches(6)
    plainly(model, optimizer, data[:3])
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    seeded(plainly, model, optimizer, data[3:])
    other, its_optimizer, _ = build(wrap)
    other.load_state_dict(saved[0])
    its_optimizer.load_state_dict(saved[1])
    seeded(plainly, other, its_optimizer, data[3:])
    assert same_bits(states(model), states(other))


def test_silence_means_it_worked():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for wrap in WRAPS.values():
            model, optimizer, _ = build(wrap)
            plainly(model, optimizer, batches(2))


# -- tried to break it ---------------------------------------------------------------------------


class Keyed(dict):
    """Of a class that torch does not know."""


class Holding:
    def __init__(self, loss: Tensor) -> None:
        self.held = {"inner": [loss]}


@pytest.mark.parametrize("output", [Keyed, Holding, lambda loss: [(loss, None)]])
def test_outputs_are_found_in_containers_and_objects(output):
    class Wrapping(Net):
        def forward(self, x, y):
            self.loss = super().forward(x, y)
            return output({"loss": self.loss} if output is Keyed else self.loss)

    model, optimizer, _ = build(WRAPS["rwp"], Wrapping())
    home = weights_of(model)
    model(*batches(1)[0])
    assert optimizer.current_pass.perturbed
    model.loss.backward()
    del model.loss
    assert same_bits(weights_of(model), home)
    optimizer.step()


def test_an_input_that_is_returned_and_an_output_changed_in_place_do_no_harm():
    class Passing(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(5, 3)

        def forward(self, x):
            return self.net(x).square().mean(), x

    model, optimizer, _ = build(model=Passing())
    home = weights_of(model)
    before = torch.randn(6, 5, requires_grad=True)
    loss, same = model(before * 2)
    loss /= 2
    (loss + same.sum()).backward()
    assert same_bits(weights_of(model), home)
    optimizer.step()


def test_a_backward_pass_with_inputs_and_gradients_by_hand_count():
    model, optimizer, _ = build()
    home = weights_of(model)
    model(*batches(1)[0]).backward(inputs=[model.end.weight])
    assert same_bits(weights_of(model), home)
    optimizer.step()
    optimizer.zero_grad()
    params = list(model.parameters())
    grads = torch.autograd.grad(model(*batches(1)[0]), params)
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    optimizer.step()  # no warning: they belong to w + v


def test_a_backward_pass_in_another_thread_restores():
    model, optimizer, _ = build()
    home = weights_of(model)
    loss = model(*batches(1)[0])
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    assert same_bits(weights_of(model), home)
    optimizer.step()


def test_a_shallow_copy_that_is_gone_detaches_nothing():
    model, optimizer, _ = build()
    copy.copy(model)(*batches(1)[0]).backward()
    gc.collect()
    assert optimizer._attached
    optimizer.step()
    plainly(model, optimizer, batches(1))


def test_a_step_that_is_skipped_leaves_the_next_one_perturbed():
    model, optimizer, _ = build()
    for data in batches(2):  # a trainer that found an overflow, and does not step
        optimizer.zero_grad()
        loss = model(*data)
        assert optimizer.current_pass.perturbed
        loss.backward()
    optimizer.step()


def test_a_forward_pass_that_a_trainer_throws_away_costs_nothing_later():
    (model, optimizer), (twin, by_passes) = twins(WRAPS["rwp"])
    optimizer.attach(model)
    model(*batches(1)[0])  # a batch that is skipped, say: it drew noise and moved statistics
    twin.load_state_dict(model.state_dict())
    by_passes.generator.set_state(optimizer.generator.get_state())
    data = batches()
    seeded(plainly, model, optimizer, data)
    seeded(in_passes, twin, by_passes, data)
    assert same_bits(states(model), states(twin))


def test_parametrized_weights_move_behind_their_parametrization():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 3)))
    (model, optimizer), (twin, by_passes) = twins(WRAPS["awp"], model)
    optimizer.attach(model, loss=lambda output, *_: output.square().mean())
    for x, _ in batches():
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        for _ in by_passes.passes():
            by_passes.zero_grad()
            twin(x).square().mean().backward()
        by_passes.step()
    assert same_bits(states(model), states(twin))


def test_saved_tensors_on_the_host_and_anomaly_mode_change_nothing():
    (model, optimizer), (twin, by_passes) = twins(WRAPS["awp"])
    optimizer.attach(model)
    data = batches()
    with torch.autograd.graph.save_on_cpu():
        seeded(plainly, model, optimizer, data)
    seeded(in_passes, twin, by_passes, data)
    assert same_bits(states(model), states(twin))


def test_an_optimizer_that_loads_a_checkpoint_while_weights_are_away_goes_on():
    model, optimizer, _ = build()
    saved = copy.deepcopy(optimizer.state_dict())
    home = weights_of(model)
    loss = model(*batches(1)[0])
    optimizer.load_state_dict(saved)
    assert same_bits(weights_of(model), home)
    del loss
    plainly(model, optimizer, batches(1))


def test_a_copied_pair_keeps_the_update_of_a_step_before_one_that_is_due():
    model, data = nn.Linear(4, 3), torch.randn(6, 4)
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = AdversarialWeightPerturbation(base, 0.3, ascent="update", interval=3)
    optimizer.attach(model)
    pairs = [(model, optimizer)]
    for step in range(7):
        if step == 5:
            pairs.append(copy.deepcopy((model, optimizer)))
        for net, stepping in pairs:
            stepping.zero_grad()
            net(data).square().mean().backward()
            stepping.step()
    assert torch.equal(pairs[0][0].weight, pairs[1][0].weight)


def test_hooks_that_come_first_later_stay_behind_ours():
    model, optimizer, _ = build(WRAPS["rwp"])
    seen: list[Any] = []
    for _ in range(2):
        model.register_forward_pre_hook(
            lambda *_: seen.append(optimizer.current_pass), prepend=True
        )
    for data in batches(2):
        model(*data).backward()
    assert [this is None for this in seen] == [True, True, False, False]
    optimizer.step()


@pytest.mark.parametrize("mode", ["awp", "rwp"])
def test_wrapping_the_base_again_while_a_backward_pass_is_pending_restores(mode):
    model, optimizer, _ = build(WRAPS[mode])
    home = weights_of(model)
    model(*batches(1)[0])  # and never backward, as after Ctrl-C
    assert not same_bits(weights_of(model), home)
    newer = WRAPS[mode](optimizer.base)
    assert same_bits(weights_of(model), home)
    newer.attach(model)
    plainly(model, newer, batches(2))


def test_a_shallow_copy_takes_over_with_a_count_of_its_own():
    model, optimizer, _ = build(WRAPS["rwp"])
    plainly(model, optimizer, batches(1))
    newer = copy.copy(optimizer)
    with pytest.raises(RuntimeError, match="wrapped again"):
        optimizer.step()
    plainly(model, newer, batches(1))
    assert newer.param_groups[0]["perturb_step"] == 2


def test_a_copied_part_of_an_attached_model_has_its_own_tensors_alone():
    part, whole = io.BytesIO(), io.BytesIO()
    torch.save(nn.Sequential(nn.Linear(3, 3)), part)
    attached = nn.Sequential(nn.Linear(3, 3), nn.Linear(300, 300))
    optimizer = WRAPS["rwp"](torch.optim.SGD(attached.parameters(), lr=0.1))
    optimizer.attach(attached)
    torch.save(nn.Sequential(attached[0]), whole)
    assert whole.tell() < part.tell() + 10_000


def test_an_optimizer_whose_attached_module_is_gone_is_free():
    inner = nn.Linear(5, 1)
    optimizer = WRAPS["rwp"](torch.optim.SGD(inner.parameters(), lr=0.1))
    handle = optimizer.attach(nn.Sequential(inner))
    gc.collect()
    for _ in optimizer.passes():
        inner(torch.ones(2, 5)).sum().backward()
    optimizer.step()
    optimizer.attach(nn.Sequential(inner)).remove()
    del handle


class LeavesItselfInEvaluation(nn.Linear):
    def forward(self, x):
        self.eval()
        return super().forward(x).square().mean()


class CheckpointsItself(nn.Linear):
    def forward(self, x, inside=False):
        y = super().forward(x)
        return y if inside else checkpoint(self, y, True, use_reentrant=False).square().mean()


@pytest.mark.parametrize("kind", [LeavesItselfInEvaluation, CheckpointsItself])
def test_a_module_that_does_the_unusual_to_itself_trains(kind):
    model = kind(5, 5)
    optimizer = WRAPS["awp"](torch.optim.SGD(model.parameters(), lr=0.1))
    optimizer.attach(model)
    home = weights_of(model)
    model(torch.ones(2, 5)).backward()
    assert same_bits(weights_of(model), home)
    optimizer.step()
