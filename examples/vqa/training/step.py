"""One optimizer step on one or several batches, however often the optimizer asks for the loss."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation

B = TypeVar("B")

# Loss of a batch. The flag: whether the weights are where they were before this step, and not
# where a perturbation has moved them.
Objective = Callable[[B, bool], Tensor]


class TrainingStep(Generic[B]):
    """Takes steps of an optimizer, plain or perturbed, on the mean loss of some batches.

    Several batches are gradient accumulation: every evaluation of the loss goes over all of them.

    Args:
        objective: scalar loss of a batch, and whether this is the step's first pass.
        optimizer: plain, or wrapped with one of `torch_awp`.
        scaler: for float16; then the perturbation takes the form of a block, since a GradScaler
            takes no closure.
    """

    def __init__(
        self,
        objective: Objective[B],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self._objective, self._optimizer, self._scaler = objective, optimizer, scaler

    def __call__(self, batches: Sequence[B]) -> Tensor:
        """Take a step; the mean loss of its first pass, a scalar on the loss's device."""
        if self._scaler is not None:
            return self._scaled(batches, self._scaler)
        passes = itertools.count()

        def closure() -> Tensor:
            return self._backward(batches, next(passes) == 0)

        # torch's type says float; it hands through whatever the closure returns.
        loss: Tensor = self._optimizer.step(closure)  # type: ignore[arg-type, assignment]
        return loss

    def _scaled(self, batches: Sequence[B], scaler: torch.amp.GradScaler) -> Tensor:
        optimizer = self._optimizer
        if isinstance(optimizer, AdversarialWeightPerturbation) and optimizer.ascent == "current":
            loss = self._backward(batches, True)
            with optimizer.perturb():
                for _ in range(optimizer.steps - 1):
                    self._backward(batches, False)
                    optimizer.ascend()
                self._backward(batches, False)
        elif isinstance(optimizer, AdversarialWeightPerturbation | RandomWeightPerturbation):
            with optimizer.perturb():
                loss = self._backward(batches, True)
        else:
            loss = self._backward(batches, True)
        scaler.step(optimizer)
        scaler.update()
        return loss

    def _backward(self, batches: Sequence[B], clean: bool) -> Tensor:
        """Gradient of the mean loss over the batches, and that loss."""
        self._optimizer.zero_grad()
        losses = []
        for batch in batches:
            loss = self._objective(batch, clean) / len(batches)
            scaled = loss if self._scaler is None else self._scaler.scale(loss)
            torch.autograd.backward(scaled)
            losses.append(loss.detach())
        return torch.stack(losses).sum()
