"""The loss as a function of the weights: curves, surfaces and one number for sharpness.

Parameters, buffers, train/eval modes, gradients, `requires_grad` and torch's random states are
bit for bit the same afterwards, also after an exception or KeyboardInterrupt.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from numbers import Real
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from torch_awp.adversarial import AdversarialWeightPerturbation
from torch_awp.functional import opmath_dtype
from torch_awp.optimizer import Constraint, Select, checked_integer, checked_real, require
from torch_awp.perturbation import retry
from torch_awp.random import RandomWeightPerturbation
from torch_awp.running_stats import is_writable

__all__ = ["cosine", "filter_normalized_direction", "loss_curve", "loss_surface", "sharpness"]

Direction = Mapping[str, Tensor]
LossFunction = Callable[[nn.Module], Tensor | float]
Positions = Tensor | Sequence[float]


@torch.inference_mode(False)
@torch.no_grad()
def filter_normalized_direction(
    model: nn.Module,
    generator: Generator | None = None,
    *,
    select: Select | None = None,
    orthogonal_to: Direction | None = None,
) -> dict[str, Tensor]:
    """Draw a Gaussian direction in which every filter has the norm of the weight's filter.

    For filter `j` of tensor `l` and `d ~ N(0, I)`: `d_lj <- d_lj / ||d_lj|| * ||w_lj||`
    (Li et al. 2018, "Visualizing the Loss Landscape of Neural Nets"; Eq. 1 of Yue et al. 2024).

    A filter is what the first index of a tensor picks: an output channel of a convolution, an
    output unit of a linear layer, a token of an embedding, but an input channel of a transposed
    convolution. A selected tensor with fewer than two dimensions is one filter.

    Args:
        model: any module; frozen parameters get a direction too.
        generator: source of the noise, on any device; `None` for torch's global ones.
        select: which tensors get a direction: `None` for those with more than one dimension, or
            a callable `(name, param) -> bool`. The others get zeros.
        orthogonal_to: a direction. The new one is made orthogonal to it, then its filters are
            normalised again, which brings back a little of the other: `cosine` says how much.

    Returns:
        For each name in `model.named_parameters()` (tied weights have one; integers are left out)
        a tensor of the parameter's shape and device, in float32 or wider; zeros for zero filters.

    Raises:
        ValueError: `orthogonal_to` does not fit the model.

    >>> model = nn.Linear(3, 2)
    >>> direction = filter_normalized_direction(model, torch.Generator().manual_seed(0))
    >>> torch.allclose(direction["weight"].norm(dim=1), model.weight.norm(dim=1))
    True
    >>> direction["bias"]
    tensor([0., 0.])
    """
    every, selected, d = _weights(model, lambda *_: True), _weights(model, select), {}
    for name, weight in selected.items():
        device = weight.device if generator is None else generator.device
        options: Any = {"dtype": opmath_dtype(weight.dtype), "device": device}
        noise = torch.randn(weight.shape, generator=generator, **options)
        d[name] = _normalized(noise.to(weight.device), weight)
    if orthogonal_to is not None:
        other = _checked_direction("orthogonal_to", orthogonal_to, model)
        other = {name: vector for name, vector in other.items() if name in selected}
        share = (_dot(d, other) / _dot(other, other)).nan_to_num()
        for name, vector in other.items():
            parallel = share.to(vector.device) * vector
            d[name] = _normalized(d[name] - parallel, selected[name])
    return {n: d[n] if n in d else _zeros_like(w) for n, w in every.items()}


@torch.no_grad()
def cosine(first: Direction, second: Direction) -> float:
    """Return the cosine of the angle between two directions; NaN if one of them is zero.

    >>> cosine({"weight": torch.tensor([1.0, 0.0])}, {"weight": torch.tensor([3.0, 4.0])})
    0.6
    """
    return float(_dot(first, second) / (_dot(first, first) * _dot(second, second)).sqrt())


def _weights(model: nn.Module, select: Select | None) -> dict[str, nn.Parameter]:
    """The selected parameters of real or complex numbers; integers cannot move in small steps."""
    return {
        name: param
        for name, param in model.named_parameters()
        if (param.is_floating_point() or param.is_complex())
        and (param.ndim > 1 if select is None else select(name, param))
    }


def _zeros_like(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight, dtype=opmath_dtype(weight.dtype))


def _normalized(vector: Tensor, weight: Tensor) -> Tensor:
    """The vector with the norms of the weight's filters, computed in float64 on the CPU."""
    target, filters = (t.flatten(1) if t.ndim > 1 else t.reshape(1, -1) for t in (weight, vector))
    dtype = torch.promote_types(vector.dtype, torch.float64 if vector.is_cpu else torch.float32)
    norms = [torch.linalg.vector_norm(t.to(dtype), dim=1, keepdim=True) for t in (target, filters)]
    scales: Tensor = (norms[0] / norms[1]).nan_to_num(nan=0.0, posinf=0.0)  # no finite norm: 0
    return (filters * scales.to(vector.dtype)).reshape(vector.shape)


def _dot(first: Direction, second: Direction) -> Tensor:
    """The real inner product over the tensors that both have, on the device of one of them."""
    total = torch.zeros((), dtype=torch.float32, device="cpu")
    for name in [name for name in first if name in second]:
        product = (first[name].conj() * second[name]).real
        dtype = torch.float64 if product.is_cpu else torch.float32
        total = total.to(product.device) + product.sum(dtype=dtype)
    return total


def loss_curve(
    model: nn.Module, loss_fn: LossFunction, direction: Direction, alphas: Positions
) -> Tensor:
    """Return `L(w + alpha * d)` for every `alpha` (Eq. 1 of Yue et al. 2024).

    Every point is computed from the unperturbed weights and evaluated with the buffers, train/eval
    modes and random state found at the call. So no point depends on another, and dropout draws the
    same at every point. At `alpha = 0` the weights are bit for bit the model's.

    Args:
        model: any module.
        loss_fn: `model -> scalar` loss, a tensor or a float; it chooses data and mode, and runs
            without autograd graph. What it does to buffers and modes is undone, so it may
            recalibrate BatchNorm first, with `torch.optim.swa_utils.update_bn(batches, model)`.
        direction: a tensor for each name in `model.named_parameters()` that is to move.
        alphas: `A` positions, in units of `direction`. The middle one of an odd number that
            spans `-r ... r` is taken as 0 where rounding (`torch.linspace`) missed it.

    Returns:
        Shape `[A]`, on the device and of the dtype of the losses (float64 for Python floats).

    Raises:
        ValueError: `direction` does not fit the model, `alphas` are not finite numbers in one
            dimension, or the loss is not a scalar.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(model.weight, 3.0)
    >>> direction = {"weight": torch.tensor([[2.0]])}
    >>> loss_curve(model, lambda model: model.weight.square().sum(), direction, [-1.0, 0.0, 1.0])
    tensor([ 1.,  9., 25.])
    """
    return _losses(model, loss_fn, {"direction": direction}, {"alphas": alphas})


def loss_surface(
    model: nn.Module,
    loss_fn: LossFunction,
    directions: tuple[Direction, Direction],
    alphas: Positions,
    betas: Positions,
) -> Tensor:
    """Return `L(w + alpha * d1 + beta * d2)` for every `alpha` and `beta`.

    Args:
        model: any module.
        loss_fn: `model -> scalar` loss.
        directions: `(d1, d2)`; draw the second `orthogonal_to` the first.
        alphas: `A` positions along the first direction.
        betas: `B` positions along the second.

    Returns:
        Shape `[A, B]`; everything else is as in `loss_curve`.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> _ = nn.init.zeros_(model.weight)
    >>> axes = {"weight": torch.eye(2)[:1]}, {"weight": torch.eye(2)[1:]}
    >>> loss_surface(model, lambda model: model.weight.norm(), axes, [0.0, 3.0], [0.0, 4.0])
    tensor([[0., 4.],
            [3., 5.]])
    """
    along = {f"directions[{i}]": direction for i, direction in enumerate(directions)}
    return _losses(model, loss_fn, along, {"alphas": alphas, "betas": betas})


def _losses(
    model: nn.Module, loss_fn: LossFunction, along: dict[str, Direction], at: dict[str, Positions]
) -> Tensor:
    """The losses at every combination of positions, one dimension for each direction."""
    axes = [_checked_positions(argument, positions) for argument, positions in at.items()]
    directions = [_checked_direction(argument, d, model) for argument, d in along.items()]
    weights = {n: p for n, p in model.named_parameters() if any(n in d for d in directions)}
    vectors = [[d[n] if n in d else _zeros_like(w) for n, w in weights.items()] for d in directions]
    moving, losses = tuple(weights.values()), []
    with _snapshot(model, moving) as restore, torch.no_grad():
        for position in product(*axes):
            restore()
            _add_(moving, vectors, position)
            losses.append(_scalar(loss_fn(model)).clone())
        return torch.stack(losses).reshape([len(axis) for axis in axes])


def _add_(weights: tuple[Tensor, ...], vectors: list[list[Tensor]], at: Sequence[float]) -> None:
    # Zeros are left out: adding one would turn -0.0 into 0.0.
    terms = [(v, c) for v, c in zip(vectors, at, strict=True) if v and c]
    if len(terms) > 1:  # added first, so that half precision is rounded once
        total = list(torch._foreach_mul(*terms[0]))
        torch._foreach_add_(total, terms[1][0], alpha=terms[1][1])
        torch._foreach_add_(weights, total)
    elif terms:
        torch._foreach_add_(weights, terms[0][0], alpha=terms[0][1])


def _checked_direction(argument: str, direction: Direction, model: nn.Module) -> dict[str, Tensor]:
    """The direction on the parameters' devices, in float32 or wider, if it fits them."""
    params, fitting = dict(model.named_parameters()), {}
    for name, vector in direction.items():
        if name not in params:
            raise ValueError(f"{argument} has {name!r}, which is not in model.named_parameters()")
        shape = params[name].shape
        expected = f"of the parameter's shape {tuple(shape)}"
        require(vector.shape == shape, f"{argument}[{name!r}]", tuple(vector.shape), expected)
        fitting[name] = vector.detach().to(params[name].device, opmath_dtype(vector.dtype))
    return fitting


def _checked_positions(argument: str, positions: Positions) -> list[float]:
    values = torch.as_tensor(positions, dtype=torch.float64, device="cpu")
    valid = values.ndim == 1 and values.numel() > 0 and bool(values.isfinite().all())
    require(valid, argument, positions, "finite numbers in one dimension")
    numbers: list[float] = values.tolist()
    middle = len(numbers) // 2
    symmetric = len(numbers) % 2 == 1 and math.isclose(numbers[0], -numbers[-1], rel_tol=1e-6)
    if symmetric and abs(numbers[middle]) <= 1e-6 * abs(numbers[0]):
        numbers[middle] = 0.0
    return numbers


def sharpness(
    model: nn.Module,
    loss_fn: LossFunction,
    gamma: float,
    *,
    mode: Literal["worst", "average"] = "worst",
    steps: int = 10,
    step_size: float | None = None,
    constraint: Constraint = "layer",
    samples: int = 10,
    generator: Generator | None = None,
    select: Select | None = None,
) -> float:
    """Return how much the loss rises near the weights, in a ball relative to each layer's norm.

    The ball is `||v|| <= gamma * ||w||` for every tensor `w` (Eq. 11 of Yue et al. 2024), so
    that models of different scales compare at one `gamma` and the same settings:

    * `"worst"`: the highest `L(w + v) - L(w)` that the projected ascent of
      `AdversarialWeightPerturbation` meets (Eq. 10 and 12). At least 0, and a lower bound of the
      true maximum; more `steps` bring it closer.
    * `"average"`: the mean of `L(w + v) - L(w)` over directions drawn as those of
      `RandomWeightPerturbation` (Eq. 9). Can be negative.

    Args:
        model: any module.
        loss_fn: `model -> scalar` loss; it chooses data and mode. Each time, buffers, modes and
            random state are those found at the call. `"worst"` needs a tensor with a graph and
            calls `backward` on it, `"average"` runs `loss_fn` without one.
        gamma: radius relative to each layer.
        mode: `"worst"` or `"average"`.
        steps: ascent steps of `"worst"`; it runs `loss_fn` `steps + 1` times.
        step_size: of an ascent step, relative to each layer's norm. Default `2 * gamma / steps`:
            enough to reach the sphere on a curved path and to go on along it.
        constraint: `"layer"` for the ball; `"element"` for `|v_i| <= gamma * |w_i|`.
        samples: directions of `"average"`; it runs `loss_fn` `samples + 1` times.
        generator: of these directions; default a new one with seed 0, on the CPU.
        select: which tensors move, frozen or not, as in `filter_normalized_direction`.

    Returns:
        A difference of losses, in the loss's unit.

    Raises:
        ValueError: a bad argument, or a loss that is not a scalar or, for `"worst"`, has no graph.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> _ = nn.init.constant_(model.weight, 2.0)
    >>> rise = sharpness(model, lambda model: model.weight.square().sum(), gamma=0.5)
    >>> round(rise, 4)  # 8 * (1.5 ** 2 - 1)
    10.0
    """
    worst = mode == "worst"
    require(mode in ("worst", "average"), "mode", mode, "'worst' or 'average'")
    steps = checked_integer("steps", steps, minimum=1)
    samples = checked_integer("samples", samples, minimum=1)
    if step_size is not None:
        checked_real("step_size", step_size, positive=True)
    weights = _weights(model, select)
    if not weights:
        raise ValueError(f"select={select!r} must pick at least one tensor of the model, got none")
    base = torch.optim.SGD(weights.items())  # which never steps
    how: dict[str, Any] = {"constraint": constraint, "select": lambda *_: True}
    optimizer: Any
    if worst:
        how |= {"steps": steps, "step_size": step_size}
        optimizer = AdversarialWeightPerturbation(base, gamma, **how)
        optimizer.step_size = step_size or 2 * gamma / steps
        optimizer._run.warned.add("gradients")  # at a maximum nothing rises
    else:
        how["generator"] = generator or Generator().manual_seed(0)
        optimizer = RandomWeightPerturbation(base, gamma, **how)
    losses = []
    with _snapshot(model):
        for weight in weights.values():
            weight.requires_grad_(True)  # frozen ones move, too
        with _snapshot(model) as restore, torch.set_grad_enabled(worst):

            def evaluate(climbs: bool) -> None:
                restore()
                loss = _scalar(loss_fn(model))
                losses.append(loss.detach().clone())
                if climbs:
                    _backward(loss)

            evaluate(climbs=worst)
            for _ in range(1 if worst else samples):
                with optimizer.perturb():
                    evaluate(climbs=worst and steps > 1)
                    for step in range(2, steps + 1 if worst else 0):
                        optimizer.ascend()
                        evaluate(climbs=step < steps)
    rises = torch.stack(losses).cpu().double() - losses[0].cpu()
    return float(rises.max() if worst else rises[1:].mean())


def _backward(loss: Tensor) -> None:
    if not loss.requires_grad:
        raise ValueError(
            "loss_fn(model) must have an autograd graph for mode='worst', got a loss without one: "
            "compute it from the model's tensors, outside torch.no_grad()"
        )
    with torch.autocast(loss.device.type, enabled=False):  # would round what it multiplies
        torch.autograd.backward(loss)


def _scalar(loss: Tensor | float) -> Tensor:
    """A loss as a tensor without dimensions; Python's floats become float64."""
    if isinstance(loss, Real):
        return torch.tensor(float(loss), dtype=torch.float64, device="cpu")
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ValueError(f"loss_fn(model) must be a scalar, got {getattr(loss, 'shape', loss)!r}")
    return loss.reshape(())


@contextmanager
def _snapshot(model: nn.Module, weights: Sequence[Tensor] = ()) -> Iterator[Callable[[], None]]:
    """Context that ends with the model, `weights` and torch's random states restored.

    It gives a function that restores them before an evaluation, with no gradients: a backward pass
    would add to the caller's. Inference mode is off: it would mark what is returned.
    """
    attributes = [
        (module, name, getattr(module, name))
        for module in model.modules()
        for name in ("training", "momentum", *dict(module.named_buffers(recurse=False)))
        if hasattr(module, name)  # update_bn of torch.optim.swa_utils sets the momentum
    ]
    params = [(param, param.grad, param.requires_grad) for param in model.parameters()]
    tensors = [*weights, *filter(is_writable, model.buffers())]

    @torch.no_grad()
    def restore(gradients: bool = False) -> None:
        for module, name, value in attributes:
            setattr(module, name, value)
        if tensors:
            torch._foreach_copy_(tensors, values)
        for param, gradient, requires_grad in params:
            param.grad = gradient if gradients else None
            param.requires_grad_(requires_grad)
        for set_random_state in random_states:
            set_random_state()
        torch.clear_autocast_cache()

    with torch.inference_mode(False):
        values = [tensor.detach().clone() for tensor in tensors]
        random_states = _random_states([*model.parameters(), *model.buffers()])
        try:
            yield restore
        finally:
            retry(partial(restore, gradients=True))


def _random_states(tensors: list[Tensor]) -> list[Callable[[], None]]:
    """Functions that set torch's random states, on the CPU and the tensors' devices, to these."""
    states: list[Callable[[], None]] = [partial(torch.set_rng_state, torch.get_rng_state())]
    for device in {t.device for t in tensors if t.device.type not in ("cpu", "meta")}:
        backend: Any = getattr(torch, device.type, None)
        if hasattr(backend, "get_rng_state"):
            states.append(partial(backend.set_rng_state, backend.get_rng_state(device), device))
        else:
            warnings.warn(
                f"torch cannot restore the random state of {device.type!r}: a loss that draws "
                "there (dropout) differs between evaluations, so use eval mode",
                stacklevel=2,
            )
    return states
