"""Adversarial weight perturbation: climb the loss, take the gradient there, step from below."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

from torch import Tensor
from torch.optim import Optimizer

from torch_awp.arguments import Select, checked_choice, checked_integer, checked_real
from torch_awp.block import Move
from torch_awp.closures import Closure
from torch_awp.wrapper import GRADIENT_KEY, Constraint, WeightPerturbation, drop_gradients


class AdversarialWeightPerturbation(WeightPerturbation):
    r"""Wrap an optimizer so that it steps on gradients taken at adversarially perturbed weights.

    Each selected tensor :math:`w` climbs the loss inside a ball relative to its own norm
    :math:`W = \lVert w \rVert`, ``steps`` times (Eq. 10 to 12 of Yue et al. 2024):

    .. math:: v \leftarrow \mathrm{project}(v + \eta \cdot W \cdot g / \lVert g \rVert)

    with :math:`g` the gradient at :math:`w + v` and :math:`\eta` the ``step_size``. The base then
    steps from :math:`w` with the gradient at :math:`w + v`.

    Args:
        optimizer: any constructed ``torch.optim.Optimizer``.
        gamma: magnitude relative to each layer, ``||v|| <= gamma * W``. A parameter group may
            bring its own as ``"perturb_gamma"``, which is also the live value.
        steps: ascent steps; a closure is called ``steps + 1`` times.
        step_size: length of one ascent step relative to ``W``; default ``gamma / steps``.
        constraint: ``"layer"`` projects onto the ball, ``"element"`` onto ``|v_i| <= gamma|w_i|``.
        select: which tensors move: ``None`` for trainable tensors with more than one dimension,
            or a callable ``(name, param) -> bool``, which needs an optimizer built with
            ``named_parameters()``.
        interval: perturb every ``interval``-th step.
        start_step: the first step (counted from 0) that perturbs.
        ascent: ``"current"`` climbs along the gradient at the current weights, which costs a
            forward and a backward pass; ``"previous"`` (``steps=1``) along the gradient that the
            last ``step()`` used, which costs a copy of it. Its first step is unperturbed.
        epsilon: added to both norms, ``1e-6`` in the paper's released code. Leave it at 0 unless
            you reproduce that: it makes the direction depend on the scale of the loss.

    Raises:
        TypeError: ``optimizer`` is not an optimizer instance.
        ValueError: any other bad value; the message names argument and value.

    A tensor does not move where its weight or gradient is zero or not finite, or has no gradient.

    >>> import torch
    >>> from torch_awp import AdversarialWeightPerturbation
    >>> model = torch.nn.Linear(4, 1)
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    >>> optimizer = AdversarialWeightPerturbation(optimizer, gamma=1e-2)
    >>> x, y = torch.randn(8, 4), torch.randn(8, 1)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = torch.nn.functional.mse_loss(model(x), y)
    ...     loss.backward()
    ...     return loss
    >>> loss = optimizer.step(closure)

    The same without a closure:

    >>> torch.nn.functional.mse_loss(model(x), y).backward()
    >>> with optimizer.perturb():
    ...     optimizer.zero_grad()
    ...     torch.nn.functional.mse_loss(model(x), y).backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        optimizer: Optimizer,
        gamma: float = 1e-4,
        *,
        steps: int = 1,
        step_size: float | None = None,
        constraint: Constraint = "layer",
        select: Select | None = None,
        interval: int = 1,
        start_step: int = 0,
        ascent: Literal["current", "previous"] = "current",
        epsilon: float = 0.0,
    ) -> None:
        self.steps = checked_integer("steps", steps, minimum=1)
        self.step_size = (
            None if step_size is None else checked_real("step_size", step_size, positive=True)
        )
        self.ascent = checked_choice("ascent", ascent, ("current", "previous"))
        if ascent == "previous" and steps != 1:
            raise ValueError(f"ascent='previous' climbs once: steps must be 1, got {steps}")
        super().__init__(
            optimizer,
            gamma,
            constraint=constraint,
            select=select,
            interval=interval,
            start_step=start_step,
            epsilon=epsilon,
        )

    def ascend(self) -> None:
        """Climb once more, along the current gradients; inside a :meth:`perturb` block.

        Raises:
            RuntimeError: outside a block.
        """
        block = self._shared.block
        if block is None:
            raise RuntimeError("ascend() outside a perturb() block: enter one first")
        if block.active:
            block.move(self._moves_along(_current_gradient))

    def _moves(self) -> Iterator[Move]:
        previous = self.ascent == "previous"
        return self._moves_along(self._previous_gradient if previous else _current_gradient)

    def _moves_along(self, gradient_of: Callable[[Tensor], Any]) -> Iterator[Move]:
        for param, gamma in self._selected():
            if gradient_of(param) is not None:
                step_size = gamma / self.steps if self.step_size is None else self.step_size
                yield Move(param, gradient_of, gamma, step_size)

    def _previous_gradient(self, param: Tensor) -> Tensor | None:
        gradient: Tensor | None = self.state.get(param, {}).get(GRADIENT_KEY)
        return gradient

    def _evaluate(self, closure: Closure) -> tuple[Any, Any]:
        if self.ascent == "previous":
            return self._evaluate_once(closure)
        clean_loss = closure()
        with self.perturb():
            perturbed_loss = closure()
            for _ in range(self.steps - 1):
                self.ascend()
                perturbed_loss = closure()
        return clean_loss, perturbed_loss

    def _gradients_ready(self, is_probe: bool) -> None:
        # A copy, taken before the base's hooks run: a loop or a hook may zero gradients in place.
        if self.ascent == "previous" and (is_probe or self._is_due(self._step_number() + 1)):
            self._shared.gradients = {
                p: p.grad.detach().clone() for p, _ in self._selected() if p.grad is not None
            }

    def _stepped(self) -> None:
        # Not earlier: most optimizers create their state for a tensor only where it has none.
        gradients, self._shared.gradients = self._shared.gradients, None
        if gradients is None:
            return
        drop_gradients(self.state)
        if not gradients:
            return
        params = [param for group in self.param_groups for param in group["params"]]
        states = [self.state[param] for param in params]  # checkpoints want all of them or none
        stateless = not any(states)
        for param, gradient in gradients.items():
            # Where a hook took the gradient away the base still has to create its state.
            if stateless or self.state[param] or param.grad is not None:
                self.state[param][GRADIENT_KEY] = gradient

    def _describe(self) -> str:
        return f"{super()._describe()}, steps={self.steps}, ascent={self.ascent!r}"


def _current_gradient(param: Tensor) -> Tensor | None:
    return param.grad
