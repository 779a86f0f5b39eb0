"""One number for how sharp a minimum is: how far the loss rises near the weights."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from torch_awp.arguments import (
    Select,
    checked_choice,
    checked_integer,
    checked_real,
    is_selected,
)
from torch_awp.landscape.direction import is_continuous, normal_like
from torch_awp.landscape.preserved import LossFunction, evaluate, preserved, scalar
from torch_awp.perturbation import Move, Perturbation


def sharpness(
    model: nn.Module,
    loss_fn: LossFunction,
    gamma: float,
    *,
    mode: Literal["worst", "average"] = "worst",
    steps: int = 10,
    step_size: float | None = None,
    constraint: Literal["layer", "element"] = "layer",
    samples: int = 10,
    generator: Generator | None = None,
    select: Select | None = None,
) -> float:
    r"""Return how much the loss rises near the weights, in a ball relative to each layer's norm.

    With :math:`\lVert v_l \rVert \le \mathrm{gamma} \cdot \lVert w_l \rVert` for every tensor
    :math:`l` (Eq. 11 of Yue et al. 2024), so that models of different scales compare at one
    ``gamma`` and the same settings:

    * ``"worst"``: :math:`\max_v L(w + v) - L(w)`, the highest loss met by the projected ascent of
      :class:`~torch_awp.AdversarialWeightPerturbation` (Eq. 10 and 12). At least 0, and a lower
      bound of the true maximum; more ``steps`` bring it closer.
    * ``"average"``: the mean of :math:`L(w + v) - L(w)` over directions drawn as
      :class:`~torch_awp.RandomWeightPerturbation` draws them (Eq. 9). Can be negative.

    Every evaluation starts from the buffers, modes and random state found at the call.

    Args:
        model: any module.
        loss_fn: ``model -> scalar`` loss; it chooses data and mode. ``"worst"`` needs a tensor with
            a graph and calls ``backward`` on it, ``"average"`` runs it without one.
        gamma: radius relative to each layer.
        mode: ``"worst"`` or ``"average"``.
        steps: ascent steps of ``"worst"``; it runs ``loss_fn`` ``steps + 1`` times.
        step_size: of an ascent step, relative to each layer's norm. Default ``2 * gamma / steps``:
            long enough to reach the sphere on a bent way and to go on along it.
        constraint: ``"layer"`` for the ball; ``"element"`` for ``|v_i| <= gamma * |w_i|``.
        samples: directions of ``"average"``; it runs ``loss_fn`` ``samples + 1`` times.
        generator: of these directions; default a new one with seed 0, on the CPU.
        select: which tensors move: ``None`` for those with more than one dimension, frozen or not,
            or a callable ``(name, param) -> bool``.

    Returns:
        A difference of losses, in the loss's unit.

    Raises:
        ValueError: a bad argument, or a loss that is not a scalar or, for ``"worst"``, not made
            from the weights.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> _ = nn.init.constant_(model.weight, 2.0)
    >>> def loss_fn(model):
    ...     return model.weight.square().sum()
    >>> round(sharpness(model, loss_fn, gamma=0.5), 4)  # 8 * (1.5 ** 2 - 1)
    10.0
    """
    gamma = checked_real("gamma", gamma)
    steps = checked_integer("steps", steps, minimum=1)
    samples = checked_integer("samples", samples, minimum=1)
    step_size = (
        2 * gamma / steps
        if step_size is None
        else checked_real("step_size", step_size, positive=True)
    )
    checked_choice("mode", mode, ("worst", "average"))
    checked_choice("constraint", constraint, ("layer", "element"))
    weights = [
        param
        for name, param in model.named_parameters()
        if is_continuous(param) and is_selected(select, name, param)
    ]
    if not weights:
        raise ValueError(f"select={select!r} must pick at least one tensor of the model, got none")
    ball = _Ball(model, loss_fn, weights, gamma, constraint)
    losses = ball.climb(steps, step_size) if mode == "worst" else ball.sample(samples, generator)
    rises = torch.stack(losses).cpu().double() - losses[0].cpu()
    return float(rises.max() if mode == "worst" else rises[1:].mean())


@dataclass(frozen=True)
class _Ball:
    """The neighborhood of a model's weights in which its loss is looked at."""

    model: nn.Module
    loss_fn: LossFunction
    weights: list[nn.Parameter]
    gamma: float
    constraint: str

    def climb(self, steps: int, step_size: float) -> list[Tensor]:
        """The losses from the center upwards, ``steps + 1`` of them."""
        perturbation = Perturbation(self.constraint)
        with preserved(self.model, []) as snapshot, perturbation, torch.enable_grad():
            for weight in self.weights:
                weight.requires_grad_(True)
            losses = []
            for step in range(steps + 1):
                snapshot.rewind()
                loss = self._loss_with_graph()
                losses.append(loss.detach().clone())
                if step < steps:
                    perturbation.move(self._uphill(loss, step_size))
            return losses

    def sample(self, samples: int, generator: Generator | None) -> list[Tensor]:
        """The losses at the center and at random places, ``samples + 1`` of them."""
        generator = Generator().manual_seed(0) if generator is None else generator
        with preserved(self.model, []) as snapshot:
            losses = [evaluate(self.model, self.loss_fn)]
            for _ in range(samples):
                snapshot.rewind()
                with Perturbation(self.constraint) as perturbation:
                    radii = [(weight, self.gamma) for weight in self.weights]
                    perturbation.wander(radii, partial(normal_like, generator=generator))
                    losses.append(evaluate(self.model, self.loss_fn))
            return losses

    def _loss_with_graph(self) -> Tensor:
        loss = scalar(self.loss_fn(self.model))
        if not loss.requires_grad:
            raise ValueError(
                "loss_fn(model) must have an autograd graph for mode='worst', got a loss without: "
                "compute it from the model's tensors, outside torch.no_grad()"
            )
        return loss

    def _uphill(self, loss: Tensor, step_size: float) -> list[Move]:
        for param in self.model.parameters():
            param.grad = None
        with torch.autocast(loss.device.type, enabled=False):  # would round what it multiplies
            torch.autograd.backward(loss)
        return [
            Move(weight, weight.grad, self.gamma, step_size)
            for weight in self.weights
            if weight.grad is not None
        ]
