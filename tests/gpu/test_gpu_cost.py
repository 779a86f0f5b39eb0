"""What a perturbation costs where starting a kernel and waiting for one are what is slow."""

from collections.abc import Iterator

import pytest
import torch
from launches import Launches
from on_device import COPIES, MODES, task
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore:Synchronization debug mode")

# Long enough that an allocator's rounding does not count.
SHAPES = [(1024, 1024)] * 4 + [(4096,)]
COPY = 4 * 1024 * 1024 * 4


def parameters(shapes, device: torch.device) -> list[nn.Parameter]:
    params = [nn.Parameter(torch.randn(shape, device=device)) for shape in shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    return params


def perturb_and_step(optimizer) -> None:
    """A step on gradients that stay, so that nothing else takes memory or starts kernels."""
    for _ in optimizer.passes():
        for param in optimizer.param_groups[0]["params"]:
            param.grad = param.grad.detach()  # another tensor, as a backward pass leaves
    optimizer.step()


@pytest.fixture
def _no_waiting(cuda: torch.device) -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize("zero_to_none", [True, False])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "base",
    [
        lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
        lambda params: torch.optim.AdamW(params, lr=0.01, foreach=True),
        lambda params: torch.optim.AdamW(params, lr=0.01, fused=True),
    ],
)
def test_no_mode_waits_for_the_device(cuda, base, mode, zero_to_none):
    model, data = task(cuda)
    optimizer = MODES[mode](base(model.parameters()))

    def step() -> None:
        for _ in optimizer.passes():
            optimizer.zero_grad(set_to_none=zero_to_none)
            nn.functional.mse_loss(model(data[0]), data[1]).backward()
        optimizer.step()

    step()  # libraries begin
    torch.cuda.set_sync_debug_mode("error")
    for _ in range(3):
        step()


def test_the_debug_mode_sees_what_waits(cuda):
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="called a synchronizing CUDA operation"):
            torch.ones(1, device=cuda).item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("mode", MODES)
def test_memory_is_what_was_promised(cuda, mode):
    params = parameters(SHAPES, cuda)
    optimizer = MODES[mode](torch.optim.SGD(params, lr=1e-3, foreach=True))
    before = torch.cuda.memory_allocated()
    between, away, peak = COPIES[mode]
    perturb_and_step(optimizer)
    for _ in range(3):
        torch.cuda.reset_peak_memory_stats()
        for p in optimizer.passes():
            for param in params:
                param.grad = param.grad.detach()
            if p.perturbed:
                held = torch.cuda.memory_allocated() - before
                assert held == pytest.approx(away * COPY, rel=0.02)
        optimizer.step()
        held = torch.cuda.memory_allocated() - before
        assert held == pytest.approx(between * COPY, rel=0.02, abs=0.02 * COPY)
        assert torch.cuda.max_memory_allocated() - before <= (peak + 0.02) * COPY


def kernels(optimizer) -> int:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        perturb_and_step(optimizer)
        torch.cuda.synchronize()
    on_gpu = [e for e in profiler.events() if e.device_type is torch.autograd.DeviceType.CUDA]
    return len([event for event in on_gpu if not event.name.startswith(("Memcpy", "Memset"))])


@pytest.mark.parametrize("mode", MODES)
def test_400_tensors_start_about_as_many_kernels_as_are_counted_without_a_device(cuda, mode):
    """By the rules of torch's sources; half as many again would show a wrong one."""
    optimizers = []
    for device in (torch.device("meta"), cuda):
        params = parameters([(64, 64)] * 400, device)
        optimizers.append(MODES[mode](torch.optim.SGD(params, lr=1e-3, foreach=True)))
        if mode.startswith("rwp"):
            optimizers[-1].generator = None  # noise of the device, since `meta` has no generators
        perturb_and_step(optimizers[-1])
    with Launches() as counted:
        perturb_and_step(optimizers[0])
    found = kernels(optimizers[1])
    print(f"kernels of {mode}: {found}, counted {counted.total}")
    assert found > 0, "the profiler sees no kernels on this machine"
    assert found <= 1.5 * counted.total
