"""What the tests on an accelerator share: the ways to perturb, and a small task to train on."""

import copy
from collections.abc import Callable, Sequence

import torch
from reference import batch, closure_for, same_bits, small_net
from torch import Tensor, nn
from torch.optim import Optimizer

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation

Data = tuple[Tensor, Tensor]
Wrap = Callable[[Optimizer], Optimizer]

GAMMA = 0.1


def _random(base: Optimizer, **kwargs: str) -> RandomWeightPerturbation:
    generator = torch.Generator(base.param_groups[0]["params"][0].device).manual_seed(5)
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
ONE_DIRECTION = {name: wrap for name, wrap in MODES.items() if not name.startswith("rwp")}


def task(device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Data]:
    """The same small network and batch on every device, drawn on the host."""
    model, (x, y) = small_net(), batch()
    return model.to(device, dtype), (x.to(device, dtype), y.to(device, dtype))


def step_by_loop(optimizer: Optimizer, model: nn.Module, data: Data) -> None:
    closure = closure_for(model, data)
    for _ in optimizer.passes():  # type: ignore[attr-defined]
        closure()
    optimizer.step()


def sgd(model: nn.Module) -> Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def on_host(tensors: Sequence[Tensor]) -> list[Tensor]:
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
