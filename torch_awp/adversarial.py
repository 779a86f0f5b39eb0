"""Adversarial weight perturbation: climb the loss, take the gradient there, step from `w`."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from torch_awp.functional import alike, copy_
from torch_awp.optimizer import (
    BLOCK,
    UPDATE_KEY,
    Constraint,
    Gradients,
    Select,
    WeightPerturbation,
    checked_integer,
    checked_real,
    optimizers_of,
    require,
)
from torch_awp.perturbation import Move, Perturbation
from torch_awp.sharding import is_sharded, local_part


class AdversarialWeightPerturbation(WeightPerturbation):
    """Wrap an optimizer so that it steps on gradients taken at adversarially perturbed weights.

    Each selected tensor `w` is moved up the loss `steps` times, inside a ball relative to its norm
    `W = ||w||` (Eq. 10 to 12 of Yue et al. 2024):

        v <- project(v + step_size * W * g / ||g||)

    with `g` the gradient at `w + v`. The base then steps from `w` with the gradient at `w + v`.

    Args:
        optimizer: any constructed `torch.optim.Optimizer`.
        gamma: magnitude relative to each layer, `||v|| <= gamma * W`. A parameter group may have
            its own as `"perturb_gamma"`; assign that to change it while training.
        steps: ascent steps; a step takes `steps + 1` passes.
        step_size: length of one ascent step relative to `W`; default `gamma / steps`.
        constraint: `"layer"` projects onto the ball, `"element"` onto `|v_i| <= gamma * |w_i|`.
        select: which tensors move: `None` for trainable tensors with more than one dimension, or a
            callable `(name, param) -> bool`, which needs an optimizer built with
            `named_parameters()`.
        interval: perturb every `interval`-th step.
        start_step: the first step (counted from 0) that perturbs; beyond the last one, none does.
        ascent: `"current"` climbs along the gradient at the current weights, which costs a forward
            and a backward pass. `"update"` (with `steps=1`) costs no pass, but a copy of the
            perturbed tensors between steps: it moves along the change that the last `step()` made
            (the idea of Becker, Altrock and Risse 2024, "Momentum-SAM", for any optimizer). Its
            first step is unperturbed.
        epsilon: added to both norms, `1e-6` in the paper's released code. Leave it at 0 unless you
            reproduce that: it makes the direction depend on the scale of the loss.

    Raises:
        TypeError: `optimizer` is not an optimizer instance.
        ValueError: any other bad value; the message names argument and value.

    With a base that has `maximize=True` the ascent is along `-g`. A tensor is not perturbed if it
    has no direction, or if its weight or direction is zero or not finite.

    >>> import torch
    >>> from torch_awp import AdversarialWeightPerturbation
    >>> model = torch.nn.Linear(4, 1)
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    >>> optimizer = AdversarialWeightPerturbation(optimizer, gamma=1e-2)
    >>> x, y = torch.randn(8, 4), torch.randn(8, 1)
    >>> for p in optimizer.passes():  # once at w, once at w + v
    ...     optimizer.zero_grad()
    ...     torch.nn.functional.mse_loss(model(x), y).backward()
    >>> optimizer.step()  # from w
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
        ascent: Literal["current", "update"] = "current",
        epsilon: float = 0.0,
    ) -> None:
        self.steps = checked_integer("steps", steps, minimum=1)
        self.step_size = step_size
        if step_size is not None:
            self.step_size = checked_real("step_size", step_size, positive=True)
        self.ascent = ascent
        require(ascent in ("current", "update"), "ascent", ascent, "'current' or 'update'")
        if ascent != "current" and steps != 1:
            raise ValueError(f"ascent={ascent!r} climbs once: steps must be 1, got {steps}")
        super().__init__(optimizer, gamma, constraint, select, interval, start_step, epsilon)

    def ascend(self) -> None:
        """Take one more ascent step along the current gradients, inside a :meth:`perturb` block.

        Raises:
            RuntimeError: outside a block.
        """
        perturbation = self._run.perturbation()
        if self._run.inside != BLOCK or perturbation is None:
            raise RuntimeError(f"ascend() outside {BLOCK}: enter one first")
        if self._is_due():
            self._ascend(perturbation)

    @property
    def _ascent_steps(self) -> int:  # type: ignore[override]
        return 0 if self.ascent == "update" else self.steps

    def _step_size(self, gamma: float) -> float:
        return gamma / self.steps if self.step_size is None else self.step_size

    def _ascend(self, perturbation: Perturbation, gradients: Gradients | None = None) -> None:
        selected, moves = self._selected(), []
        self._warn_if_in_vain(selected)
        # In torch a value of the group, elsewhere an attribute.
        uphill = any(getattr(base, "maximize", False) for base in optimizers_of(self.base))
        for param, gamma, group in selected:
            direction = self._direction_of(param, gradients)
            if direction is None and self.ascent == "current" and is_sharded(param):
                # Other processes may have a gradient, and the norm takes a part from each.
                direction = torch.zeros_like(param, dtype=getattr(param, "grad_dtype", None))
            if direction is not None:
                # What is kept of an update is the way back; a base that maximizes calls up down.
                back = self.ascent == "update" or group.get("maximize", uphill)
                size = self._step_size(gamma)
                moves.append(Move(param, direction, gamma, -size if back else size))
        moved = perturbation.move([move.param for move in moves], [moves])
        if selected and self.ascent == "current" and not (moves and moved):
            self._warn_once(
                "gradients",
                "no tensor is perturbed (further): no selected tensor has a gradient other than "
                "zero. Were gradients cleared after backward(), or computed elsewhere?",
            )

    def _would_move(self) -> bool:
        return any(self._direction_of(param) is not None for param, _, _ in self._selected())

    def _direction_of(self, param: Tensor, gradients: Gradients | None = None) -> Tensor | None:
        if self.ascent == "current":
            return param.grad if gradients is None else gradients.get(param)
        update = self._run.update.get(param)  # of a tensor that may have another shape now
        return update if update is not None and update.shape == param.shape else None

    # -- the change that the last step made ------------------------------------------------------

    def _before_base_step(self) -> None:
        super()._before_base_step()
        if self.ascent == "update" and (self._run.is_probe or self._is_due(ahead=1)):
            before = {param: torch.empty_like(param) for param, _, _ in self._selected()}
            copy_(_local(before.values()), _local(before))
            self._run.before = before

    def _after_base_step(self) -> None:
        super()._after_base_step()
        update = self._run.before
        for copies, weights in alike(_local(update.values()), _local(update)):
            torch._foreach_sub_(copies, weights)
        self._run.update, self._run.before = update, {}
        if self._run.is_probe:  # flattened checkpoints are read into the keys of the live state
            for param in update:
                if param in self.state or isinstance(self.state, defaultdict):
                    self.state[param][UPDATE_KEY] = update[param]

    def state_dict(self) -> dict[str, Any]:
        """The base's state, with the wrapper's values and the update beside that of each tensor.

        Tensors without one have zeros there: distributed checkpoints are read into what a fresh
        optimizer has, and want entries of all tensors or of none.
        """
        state_dict = super().state_dict()
        if self.ascent == "current":
            return state_dict
        part, params = self._part_of_torch(state_dict)
        found = ((param, self._direction_of(param)) for param in self._params())
        updates = {param: update for param, update in found if update is not None}
        if updates or self.state or self._step_number() > 0:
            fresh = [param for param, _, _ in self._selected() if param not in updates]
            updates |= {param: torch.zeros_like(param, requires_grad=False) for param in fresh}
        saved = {index: {} for index in params if updates} | part["state"]
        # Bases read state of a tensor as their own (Adam's "step"): none where nothing was changed.
        fill = not any(saved.values()) and any(map(_is_change, updates.values()))
        for index, param in params.items():
            values, update = saved.get(index) or {}, updates.get(param)
            if update is not None and (values or fill or _is_change(update)):
                saved[index] = {**values, UPDATE_KEY: update}
        part["state"] = saved
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        update = {}
        part, params = self._part_of_torch(state_dict)
        for index, param in params.items():
            values = part["state"].get(index)  # before the base changes or shards it
            value = values.get(UPDATE_KEY) if isinstance(values, dict) else None
            if isinstance(value, Tensor):
                update[param] = value.to(param.device, param.dtype, copy=True)
        super().load_state_dict(state_dict)
        self._run.update = update if self.ascent == "update" else {}

    def _part_of_torch(self, state_dict: Mapping[str, Any]) -> tuple[Any, dict[Any, Tensor]]:
        """The part in torch's format, also of an optimizer around another; the tensors by index."""
        for part in (state_dict, *state_dict.values()):
            if isinstance(part, Mapping) and "param_groups" in part:
                indices = [index for group in part["param_groups"] for index in group["params"]]
                return part, dict(zip(indices, self._params(), strict=False))
        raise ValueError(f"no parameter groups in an optimizer's state_dict of {list(state_dict)}")


def _is_change(update: Tensor) -> bool:
    # Of a sharded one the processes may know different parts, and one alone may ask.
    return is_sharded(update) or bool(update.any())


def _local(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [local_part(tensor) for tensor in tensors]
