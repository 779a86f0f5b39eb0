"""What the tests on real devices share: the ways to perturb, and a small task to train on."""

import copy
import sys
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from reference import batch, closure_for, same_bits, small_net
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import _get_capturable_supported_devices
from torch.utils import _foreach_utils

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation

Data = tuple[Tensor, Tensor]
Wrap = Callable[[Optimizer], Optimizer]

GAMMA = 0.1


def generator_for(device: torch.device) -> torch.Generator:
    """On the device, or on the host where the device has none of its own (XLA's)."""
    try:
        return torch.Generator(device)
    except RuntimeError:
        return torch.Generator()


def _random(base: Optimizer, **kwargs: str) -> RandomWeightPerturbation:
    generator = generator_for(base.param_groups[0]["params"][0].device).manual_seed(5)
    return RandomWeightPerturbation(base, GAMMA, generator=generator, **kwargs)


MODES: dict[str, Wrap] = {
    "awp": lambda base: AdversarialWeightPerturbation(base, GAMMA),
    "awp, 3 steps": lambda base: AdversarialWeightPerturbation(base, GAMMA, steps=3),
    # Long steps, which the projection has to cut.
    "awp, cut": lambda base: AdversarialWeightPerturbation(base, GAMMA, steps=2, step_size=0.08),
    "awp, element": lambda base: AdversarialWeightPerturbation(
        base, GAMMA, step_size=1.0, constraint="element"
    ),
    "update": lambda base: AdversarialWeightPerturbation(base, GAMMA, ascent="update"),
    "rwp": _random,
    "rwp, element": lambda base: _random(base, constraint="element"),
}
# Copies of the tensors that move: between steps, at `w + v`, and at most at any moment.
COPIES = {
    "awp": (0, 1, 2),
    "awp, 3 steps": (0, 1, 2),
    "awp, cut": (0, 1, 3),
    "awp, element": (0, 1, 5),
    "update": (1, 2, 3),
    "rwp": (0, 1, 3),
    "rwp, element": (0, 1, 6),
}
ONE_DIRECTION = {name: wrap for name, wrap in MODES.items() if not name.startswith("rwp")}


def task(device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Data]:
    """The same small network and batch on every device, drawn on the host."""
    model, (x, y) = small_net(), batch()
    return model.to(device, dtype), (x.to(device, dtype), y.to(device, dtype))


def skip_unless_supported(flags: Mapping[str, bool], device: torch.device) -> None:
    """Of flags of torch's optimizers, whose kernels some devices have."""
    for flag, supported in (
        ("fused", _foreach_utils._get_fused_kernels_supported_devices()),
        ("capturable", _get_capturable_supported_devices()),
    ):
        if flags.get(flag) and device.type not in supported:
            pytest.skip(f"torch has no {flag} optimizers on {device.type}")


def step_by_loop(optimizer: Optimizer, model: nn.Module, data: Data) -> None:
    closure = closure_for(model, data)
    for _ in optimizer.passes():  # type: ignore[attr-defined]
        closure()
    optimizer.step()


def sgd(model: nn.Module) -> Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def on_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    if "torch_xla" in sys.modules:  # which otherwise compiles for one tensor after the other
        sys.modules["torch_xla"].sync()
    return [tensor.detach().cpu().clone() for tensor in tensors]


def equal(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return same_bits(on_host(first), on_host(second))


def trained(wrap: Wrap, model: nn.Module, data: Data, steps: int = 4) -> list[Tensor]:
    """Weights of a copy of the model after some steps, on the host."""
    twin = copy.deepcopy(model)
    optimizer = wrap(sgd(twin))
    for _ in range(steps):
        step_by_loop(optimizer, twin, data)
    return on_host(list(twin.parameters()))
