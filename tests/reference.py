"""The perturbation rules once more: one tensor at a time, float64, straight from the equations."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def project(v: Tensor, w: Tensor, gamma: float, constraint: str) -> Tensor:
    if constraint == "element":
        bound = gamma * w.abs()
        return torch.minimum(torch.maximum(v, -bound), bound)
    norm, radius = v.norm().item(), gamma * w.norm().item()
    return v * (radius / norm) if norm > radius else v


def ascent(
    weights: Sequence[Tensor],
    gradients_at: Callable[[list[Tensor]], Sequence[Tensor]],
    gamma: float,
    *,
    steps: int = 1,
    step_size: float | None = None,
    constraint: str = "layer",
) -> list[Tensor]:
    """Return ``w + v`` after ``steps`` ascent steps; 1-D tensors stay."""
    homes = [w.detach().double() for w in weights]
    vs = [torch.zeros_like(w) for w in homes]
    size = gamma / steps if step_size is None else step_size
    for _ in range(steps):
        gradients = gradients_at([w + v for w, v in zip(homes, vs, strict=True)])
        for i, (w, g) in enumerate(zip(homes, gradients, strict=True)):
            norm = g.double().norm().item()
            if w.ndim > 1 and norm > 0 and w.norm() > 0:
                v = vs[i] + size * w.norm() * g.double() / norm
                vs[i] = project(v, w, gamma, constraint)
    return [w + v for w, v in zip(homes, vs, strict=True)]


def small_net(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(6, 5, dtype=dtype), torch.randn(6, 3, dtype=dtype)


def loss_of(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.mse_loss(model(data[0]), data[1])


def closure_for(
    model: nn.Module, data: tuple[Tensor, Tensor], losses: list[float] | None = None
) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        model.zero_grad()
        loss = loss_of(model, data)
        loss.backward()  # type: ignore[no-untyped-call]
        if losses is not None:
            losses.append(loss.item())
        return loss

    return closure


def one_step(optimizer: Any, closure: Callable[[], Tensor], form: str) -> None:
    """Step a wrapper by its ``"closure"``, its ``"loop"`` or its ``"block"`` form."""
    if form == "closure":
        optimizer.step(closure)
        return
    if form == "loop":
        for _ in optimizer.passes():
            closure()
    else:
        closure()  # modes that need no gradient at w do without; it does no harm
        with optimizer.perturb():
            for _ in range(getattr(optimizer, "steps", 1) - 1):
                closure()
                optimizer.ascend()
            closure()
    optimizer.step()


def weights_of(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()


def same_bits(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return [bits(t) for t in first] == [bits(t) for t in second]
