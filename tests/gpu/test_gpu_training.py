"""What surrounds a step on an accelerator: scalers, compilers, graphs, streams, checkpoints."""

import copy
import io
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from on_device import (
    MODES,
    equal,
    on_host,
    sgd,
    skip_unless_supported,
    step_by_loop,
    task,
    trained,
)
from reference import loss_of
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.codegen import common as inductor
from torch.optim import Optimizer

# Between ways to compute the same in float32.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
BASES = {
    "SGD": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "foreach": True}),
    "SGD, fused": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "fused": True}),
    "AdamW, fused": (torch.optim.AdamW, {"lr": 0.01, "fused": True}),
}


@pytest.fixture(params=BASES)
def base(request: pytest.FixtureRequest, device: torch.device) -> Callable[..., Optimizer]:
    cls, values = BASES[request.param]
    skip_unless_supported(values, device)
    return partial(cls, **values)


@pytest.mark.parametrize("mode", ["awp", "awp, element", "update", "rwp"])
def test_float16_with_real_overflows_skips_their_steps_and_trains_on_others(device, mode, base):
    model, data = task(device)
    optimizer = MODES[mode](base(model.parameters()))
    # Gradients of about 0.1 overflow in float16 until the scale has come down to 2 ** 18 or so.
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**24, growth_interval=10_000)
    taken, losses = 0, []
    for _ in range(25):
        before, scale = on_host(list(model.parameters())), scaler.get_scale()
        for p in optimizer.passes():
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.float16):
                loss = loss_of(model, data)
            scaler.scale(loss).backward()
            losses += [loss.item()] if p.index == 0 else []
        scaler.step(optimizer)
        scaler.update()
        skipped = scaler.get_scale() < scale
        assert skipped == equal(list(model.parameters()), before)
        taken += not skipped
    assert 0 < taken < 25
    assert optimizer.param_groups[0]["perturb_step"] == taken
    assert losses[-1] < losses[0]


@pytest.fixture
def compiler(device: torch.device) -> Iterator[CompileCounterWithBackend]:
    inductor.init_backend_registration()
    if inductor.get_scheduling_for_device(device.type) is None:
        pytest.skip(f"torch's inductor has no code for {device.type}")
    torch.compiler.reset()
    yield CompileCounterWithBackend("inductor")
    torch.compiler.reset()


@pytest.mark.parametrize("mode", MODES)
def test_a_compiled_model_trains_like_the_eager_one_and_compiles_once(device, compiler, mode):
    model, data = task(device)
    expected = trained(MODES[mode], model, data)
    optimizer = MODES[mode](sgd(model))
    compiled = torch.compile(model, backend=compiler)
    for _ in range(4):
        step_by_loop(optimizer, compiled, data)
    torch.testing.assert_close(on_host(list(model.parameters())), expected, **CLOSE)
    assert compiler.frame_count == 1


@pytest.mark.parametrize("mode", MODES)
def test_a_pass_can_be_the_replay_of_a_graph(cuda, mode):
    model, data = task(cuda)
    expected = trained(MODES[mode], model, data)
    optimizer = MODES[mode](sgd(model))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # a graph is captured of what has run before
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(model, data).backward()
    torch.cuda.current_stream().wait_stream(stream)
    optimizer.zero_grad()  # so that each replay writes new gradients to the same memory
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss_of(model, data).backward()
    for _ in range(4):
        for _ in optimizer.passes():
            graph.replay()
        optimizer.step()
    torch.testing.assert_close(on_host(list(model.parameters())), expected, **CLOSE)


@pytest.mark.parametrize("mode", MODES)
def test_models_on_two_streams_train_as_one_after_the_other(cuda, mode):
    models = [task(cuda) for _ in range(2)]
    expected = [trained(MODES[mode], model, data) for model, data in models]
    optimizers = [MODES[mode](sgd(model)) for model, _ in models]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    for stream in streams:
        stream.wait_stream(torch.cuda.current_stream())
    for _ in range(4):
        for (model, data), optimizer, stream in zip(models, optimizers, streams, strict=True):
            with torch.cuda.stream(stream):
                step_by_loop(optimizer, model, data)
    torch.cuda.synchronize()
    for (model, _), weights in zip(models, expected, strict=True):
        torch.testing.assert_close(on_host(list(model.parameters())), weights, **CLOSE)


@pytest.fixture
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("mode", MODES)
def test_a_resumed_run_ends_at_the_bits_of_one_that_was_not_interrupted(device, mode, base):
    model, data = task(device)
    optimizer = MODES[mode](base(model.parameters()))
    for _ in range(3):
        step_by_loop(optimizer, model, data)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    for _ in range(3):
        step_by_loop(optimizer, model, data)

    torch.manual_seed(99)
    resumed = copy.deepcopy(model)
    optimizer = MODES[mode](base(resumed.parameters()))
    file.seek(0)
    place = device if hasattr(torch, device.type) else "cpu"  # torch cannot load to XLA's
    state = torch.load(file, map_location=place, weights_only=True)
    resumed.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    for _ in range(3):
        step_by_loop(optimizer, resumed, data)
    assert equal(list(resumed.parameters()), list(model.parameters()))
