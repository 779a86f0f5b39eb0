"""What a perturbation costs where starting a kernel and waiting for one are what is slow."""

from collections.abc import Iterator

import pytest
import torch
from on_device import MODES, task
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore:Synchronization debug mode")

# Long enough that an allocator's rounding does not count.
SHAPES = [(1024, 1024)] * 4 + [(4096,)]
COPY = 4 * 1024 * 1024 * 4
# Copies of the perturbed tensors: between steps, in a pass at w + v, and at most at any moment.
MEMORY = {
    "awp": (0, 1, 2),
    "awp, 3 steps": (0, 1, 2),
    "awp, cut": (0, 1, 2),
    "awp, element": (0, 1, 3),
    "update": (1, 2, 3),
    "rwp": (0, 1, 3),
    "rwp, element": (0, 1, 4),
}


def parameters(shapes, device: torch.device) -> list[nn.Parameter]:
    params = [nn.Parameter(torch.randn(shape, device=device)) for shape in shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    return params


def perturb_and_step(optimizer) -> None:
    """A step on gradients that stay, so that nothing else takes memory or starts kernels."""
    for _ in optimizer.passes():
        pass
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
    between, away, peak = MEMORY[mode]
    perturb_and_step(optimizer)
    for _ in range(3):
        torch.cuda.reset_peak_memory_stats()
        for p in optimizer.passes():
            if p.perturbed:
                held = torch.cuda.memory_allocated() - before
                assert held == pytest.approx(away * COPY, rel=0.02)
        optimizer.step()
        held = torch.cuda.memory_allocated() - before
        assert held == pytest.approx(between * COPY, rel=0.02, abs=0.02 * COPY)
        assert torch.cuda.max_memory_allocated() - before <= (peak + 0.02) * COPY


def kernels(optimizer) -> int:
    perturb_and_step(optimizer)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        perturb_and_step(optimizer)
        torch.cuda.synchronize()
    on_gpu = [e for e in profiler.events() if e.device_type is torch.autograd.DeviceType.CUDA]
    return len([event for event in on_gpu if not event.name.startswith(("Memcpy", "Memset"))])


@pytest.mark.parametrize("mode", [mode for mode in MODES if not mode.startswith("rwp")])
def test_400_tensors_take_few_kernels_each_more_than_10(cuda, mode):
    """Operations with a number for each tensor take a kernel each; all others share theirs."""
    counts = {}
    for tensors in (10, 400):
        params = parameters([(64, 64)] * tensors, cuda)
        counts[tensors] = kernels(MODES[mode](torch.optim.SGD(params, lr=1e-3, foreach=True)))
    print(f"kernels of {mode}: {counts}")
    assert counts[10] > 0, "the profiler sees no kernels on this machine"
    of_its_own = {"awp, 3 steps": 6, "awp, cut": 5}.get(mode, 2)  # 2 a climb, 1 a projection
    assert counts[400] - counts[10] <= (of_its_own + 0.5) * 390
