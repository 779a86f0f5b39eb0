"""What is promised, on a device of torch_xla: the host's results, compiled once, nothing read."""

import io
from functools import partial
from pathlib import Path

import pytest
import torch
from on_device import GAMMA, MODES, equal, on_host, sgd, step_by_loop, task, trained
from reference import closure_for, loss_of, one_step
from torch import nn

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation, landscape

# Between two devices' float32, over a few steps of a small network.
CLOSE = {"rtol": 1e-4, "atol": 3e-5}
MODES = {
    **MODES,
    "update, element": lambda base: AdversarialWeightPerturbation(
        base, GAMMA, step_size=1.0, ascent="update", constraint="element"
    ),
    "awp, epsilon": lambda base: AdversarialWeightPerturbation(base, GAMMA, epsilon=1e-2),
}
RECIPES = Path(__file__).parents[2] / "examples" / "RECIPES.md"
every_mode = pytest.mark.parametrize("mode", MODES)


def compiled(metrics) -> int:
    return (metrics.metric_data("CompileTime") or [0])[0]


def read(metrics) -> int:
    return (metrics.metric_data("TransferFromDeviceTime") or [0])[0]


def on_both(device):
    """The same model and batch, on the device and on the host."""
    for place in (device, torch.device("cpu")):
        torch.manual_seed(0)
        yield task(place)


def trained_by(form, mode, model, data, steps=4):
    optimizer = MODES[mode](sgd(model))
    for _ in range(steps):
        one_step(optimizer, closure_for(model, data), form)
    return on_host(list(model.parameters()))


@every_mode
@pytest.mark.parametrize("form", ["loop", "block", "closure"])
def test_every_mode_and_form_equals_the_host(device, mode, form):
    """Random modes draw the same noise, on the host."""
    found, expected = (trained_by(form, mode, *twin) for twin in on_both(device))
    torch.testing.assert_close(found, expected, **CLOSE)


@every_mode
@pytest.mark.parametrize("form", ["loop", "block", "closure"])
def test_two_steps_compile_and_later_ones_do_not_and_none_reads_a_value(
    xla, metrics, device, mode, form
):
    model, data = task(device)
    optimizer = MODES[mode](sgd(model))
    xla.sync()
    compilations, values = [], read(metrics)
    for _ in range(5):
        before = compiled(metrics)
        one_step(optimizer, closure_for(model, data), form)
        xla.sync()
        compilations.append(compiled(metrics) - before)
    assert read(metrics) == values
    assert max(compilations[:2]) <= 1
    assert not any(compilations[2:])


def test_what_compiles_and_what_reads_is_seen(metrics, device):
    compilations, values = compiled(metrics), read(metrics)
    torch.full((3, 5), 7.0, device=device).log().sum().item()
    assert compiled(metrics) > compilations
    assert read(metrics) > values


@every_mode
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_come_home_to_the_bit_with_a_sync_in_every_pass(xla, device, mode, dtype):
    model, data = task(device, dtype)
    optimizer = MODES[mode](sgd(model))
    params = list(model.parameters())
    for number in range(3):
        home = on_host(params)
        for p in optimizer.passes():
            xla.sync()
            closure_for(model, data)()
            xla.sync()
            assert p.perturbed == (not equal(params, home))
        assert p.perturbed or number == 0  # when some modes know no direction
        assert equal(params, home)
        optimizer.step()
        xla.sync()


@every_mode
def test_a_sync_in_every_pass_changes_no_result(xla, device, mode):
    model, data = task(device)
    expected = trained(MODES[mode], model, data)
    optimizer = MODES[mode](sgd(model))
    for _ in range(4):
        for _ in optimizer.passes():
            xla.sync()
            closure_for(model, data)()
            xla.sync()
        optimizer.step()
        xla.sync()
    torch.testing.assert_close(on_host(list(model.parameters())), expected, **CLOSE)


@every_mode
@pytest.mark.parametrize("when", ["between steps", "while perturbed"])
def test_a_parameter_is_given_other_memory(xla, device, mode, when):
    ends = []
    for model, data in on_both(device):
        optimizer = MODES[mode](sgd(model))
        for _ in range(4):
            home = on_host(list(model.parameters()))
            for p in optimizer.passes():
                if p.perturbed and not p.climbs and when == "while perturbed":
                    for param in model.parameters():
                        param.data = param.data.clone()
                    xla.sync()
                closure_for(model, data)()
            assert equal(list(model.parameters()), home)
            optimizer.step()
            if when == "between steps":
                for param in model.parameters():
                    param.data = param.data.clone()
        ends.append(on_host(list(model.parameters())))
    torch.testing.assert_close(*ends, **CLOSE)


@every_mode
def test_tensors_that_lie_otherwise_equal_the_host(device, mode):
    ends = []
    for place in (device, "cpu"):
        torch.manual_seed(1)
        flat = torch.randn(400, device="cpu").to(place)
        tensors = [
            flat[:60].view(12, 5),  # of one memory
            flat[60:120].view(5, 12),
            flat[120:].view(20, 14)[:, :9],  # a slice of columns
            torch.randn(7, 6, device="cpu").to(place).t(),
            torch.randn(4, 3, 2, 2, device="cpu").to(place, memory_format=torch.channels_last),
            torch.randn(3, 8, device="cpu").to(place),  # whose gradient is expanded
        ]
        params = [nn.Parameter(tensor) for tensor in tensors]
        targets = [torch.randn(p.shape, device="cpu").to(place) for p in params[:-1]]
        optimizer = MODES[mode](torch.optim.SGD(params, lr=0.1, momentum=0.9))
        for _ in range(3):
            home = on_host([*params, flat])
            for _ in optimizer.passes():
                optimizer.zero_grad()
                loss = params[-1].sum()
                for param, target in zip(params[:-1], targets, strict=True):
                    loss = loss + (param * target).cos().sum()
                loss.backward()
            assert equal([*params, flat], home)
            optimizer.step()
        ends.append(on_host([*params, flat]))
    torch.testing.assert_close(*ends, **CLOSE)


@pytest.mark.parametrize("constraint", ["layer", "element"])
def test_noise_of_the_device_is_as_long_as_asked_and_new_in_every_step(xla, device, constraint):
    model, data = task(device)
    optimizer = RandomWeightPerturbation(sgd(model), GAMMA, constraint=constraint)
    weight, moves = model[0].weight, []
    for _ in range(4):
        home = weight.detach().cpu()
        for _ in optimizer.passes():
            moves.append(weight.detach().cpu() - home)
            closure_for(model, data)()
        if constraint == "layer":
            assert moves[-1].norm().item() == pytest.approx(GAMMA * home.norm().item(), rel=1e-4)
        else:
            assert (moves[-1].abs() <= GAMMA * home.abs() * (1 + 1e-4) + 1e-7).all()
        optimizer.step()
        xla.sync()
    assert all(not torch.equal(a, b) for i, a in enumerate(moves) for b in moves[:i])


@every_mode
def test_a_resumed_run_ends_at_the_bits_of_one_that_was_not_interrupted(xla, device, mode):
    model, data = task(device)
    optimizer = MODES[mode](sgd(model))

    def train(optimizer, model) -> None:
        for _ in range(3):
            step_by_loop(optimizer, model, data)
            xla.sync()

    train(optimizer, model)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(optimizer, model)
    resumed, _ = task(device)
    second = MODES[mode](sgd(resumed))
    file.seek(0)
    state = torch.load(file, map_location="cpu", weights_only=True)
    resumed.load_state_dict(state["model"])
    second.load_state_dict(state["optimizer"])
    train(second, resumed)
    assert equal(list(resumed.parameters()), list(model.parameters()))


@every_mode
def test_attach_equals_the_loop(xla, device, mode):
    model, (x, y) = task(device)
    expected = trained(MODES[mode], model, (x, y))
    optimizer = MODES[mode](sgd(model))
    optimizer.attach(model, lambda output, *_: nn.functional.mse_loss(output, y))
    for _ in range(4):
        optimizer.zero_grad()
        loss_of(model, (x, y)).backward()
        optimizer.step()
        xla.sync()
    torch.testing.assert_close(on_host(list(model.parameters())), expected, **CLOSE)


@pytest.mark.filterwarnings("ignore:torch cannot restore the random state of 'xla'")
def test_the_landscape_is_that_of_the_host(device):
    results = []
    for net, data in on_both(device):
        home, at = on_host(list(net.parameters())), partial(loss_of, data=data)
        direction = landscape.filter_normalized_direction(net, torch.Generator().manual_seed(3))
        results.append(
            [
                landscape.loss_curve(net, at, direction, [-1.0, 0.0, 0.5]).cpu(),
                landscape.loss_surface(net, at, (direction, direction), [0.0, 0.2], [0.3]).cpu(),
                torch.tensor(landscape.sharpness(net, at, GAMMA, steps=3)),
                torch.tensor(landscape.sharpness(net, at, GAMMA, mode="average", samples=3)),
            ]
        )
        assert equal(list(net.parameters()), home)
    torch.testing.assert_close(*results, **CLOSE)


@every_mode
def test_optimizer_step_of_torch_xla_steps_the_wrapper(xla, device, mode):
    model, data = task(device)
    expected = trained(MODES[mode], model, data)
    optimizer = MODES[mode](sgd(model))
    for _ in range(4):
        for _ in optimizer.passes():
            closure_for(model, data)()
        xla.core.xla_model.optimizer_step(optimizer, barrier=True)
    assert optimizer.param_groups[0]["perturb_step"] == 4
    torch.testing.assert_close(on_host(list(model.parameters())), expected, **CLOSE)


def test_the_recipe_trains_as_the_host_does(device):
    """Its code is that of the page, where no other test runs it."""
    section = RECIPES.read_text(encoding="utf-8").partition("\n## torch_xla and TPUs\n")[2]
    code = section.partition("```py\n")[2].partition("```")[0]
    (model, _), (here, data) = on_both(torch.device("cpu"))
    names = {
        "torch": torch,
        "AdversarialWeightPerturbation": AdversarialWeightPerturbation,
        "model": model,
        "loader": [data] * 4,
        "loss_fn": nn.functional.mse_loss,
    }
    exec(compile(code, str(RECIPES), "exec"), names)
    optimizer = torch.optim.AdamW(here.parameters(), lr=1e-3)
    optimizer = AdversarialWeightPerturbation(optimizer, gamma=1e-3)
    for _ in range(4):
        step_by_loop(optimizer, here, data)
    found = list(names["model"].parameters())
    assert {param.device for param in found} == {device}
    torch.testing.assert_close(on_host(found), on_host(list(here.parameters())), **CLOSE)
