"""Adversarial weight perturbation: climb the loss, take the gradient there, step from below."""

from typing import Any, Literal

from torch.optim import Optimizer

from torch_awp.arguments import Select, checked_choice, checked_integer, checked_real
from torch_awp.delegation import maximizes
from torch_awp.kept import copies_of, drop, keep, kept, load_kept, save_kept, subtract_params_
from torch_awp.perturbation import Move, Perturbation
from torch_awp.wrapper import BLOCK, Constraint, WeightPerturbation

# Under which name the modes that need no gradient at w keep their direction.
_KEYS = {"update": "perturb_update", "previous": "perturb_gradient"}


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
        steps: ascent steps; a step takes ``steps + 1`` passes.
        step_size: length of one ascent step relative to ``W``; default ``gamma / steps``.
        constraint: ``"layer"`` projects onto the ball, ``"element"`` onto ``|v_i| <= gamma|w_i|``.
        select: which tensors move: ``None`` for trainable tensors with more than one dimension,
            or a callable ``(name, param) -> bool``, which needs an optimizer built with
            ``named_parameters()``.
        interval: perturb every ``interval``-th step.
        start_step: the first step (counted from 0) that perturbs.
        ascent: ``"current"`` climbs along the gradient at the current weights, which costs a
            forward and a backward pass. With ``steps=1`` two others cost none, but a copy of the
            perturbed tensors between steps: ``"update"`` goes on along the change that the last
            ``step()`` made, whatever the base (the idea of Becker, Altrock and Risse 2024,
            "Momentum-SAM", for any optimizer), ``"previous"`` climbs along the gradient that the
            last ``step()`` used. Their first step is unperturbed.
        epsilon: added to both norms, ``1e-6`` in the paper's released code. Leave it at 0 unless
            you reproduce that: it makes the direction depend on the scale of the loss.

    Raises:
        TypeError: ``optimizer`` is not an optimizer instance.
        ValueError: any other bad value; the message names argument and value.

    "Adversarial" is what the base calls worse: with ``maximize=True`` the climb is along ``-g``. A
    tensor does not move where its weight or direction is zero or not finite, or has no direction.

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

    _default_key = "perturb_adversarial"
    _others_default_key = "perturb_random"

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
        ascent: Literal["current", "update", "previous"] = "current",
        epsilon: float = 0.0,
    ) -> None:
        self.steps = checked_integer("steps", steps, minimum=1)
        self.step_size = (
            None if step_size is None else checked_real("step_size", step_size, positive=True)
        )
        self.ascent = checked_choice("ascent", ascent, ("current", *_KEYS))
        if ascent != "current" and steps != 1:
            raise ValueError(f"ascent={ascent!r} climbs once: steps must be 1, got {steps}")
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
        perturbation = self._open_perturbation("ascend")
        if self._progress.visit != BLOCK:
            raise RuntimeError(f"ascend() inside {self._progress.visit}, which climbs by itself")
        if self._perturbs_now():
            perturbation.move(self._moves())

    @property
    def _climbs(self) -> int:  # type: ignore[override]
        return self.steps if self.ascent == "current" else 0

    @property
    def _keeps_memory(self) -> bool:  # type: ignore[override]
        # A copy between steps is what the direction takes already.
        return self.ascent == "current"

    def _climb(self, perturbation: Perturbation) -> None:
        moves = self._moves()
        climbed = perturbation.move(moves)
        selected = self._is_anything_selected(bool(moves))
        if selected and self.ascent == "current" and not (moves and climbed):
            self._warn_once(
                "gradients",
                "no tensor is perturbed: none that is selected has a gradient other than zero. Was "
                "it cleared between backward() and perturb(), or computed elsewhere?",
            )

    def _step_size_of(self, gamma: float) -> float:
        return gamma / self.steps if self.step_size is None else self.step_size

    def _can_climb(self) -> bool:
        return bool(self._moves())

    def _moves(self) -> list[Move]:
        moves = []
        # What is kept of an update is the way back; a base that maximizes calls up down.
        against = {
            id(group): self.ascent == "update" or maximizes(self.base, group)
            for group in self.base.param_groups
        }
        for param, gamma, group in self._selected():
            if self.ascent == "current":
                direction = param.grad
            else:
                direction = kept(self.state, _KEYS[self.ascent], param)
            if direction is not None:
                step_size = self._step_size_of(gamma)
                signed = -step_size if against[id(group)] else step_size
                moves.append(Move(param, direction, gamma, signed))
        return moves

    def _gradients_ready(self, is_probe: bool) -> None:
        if self.ascent == "current" or not (is_probe or self._is_due(self._step_number() + 1)):
            return
        selected = [param for param, _, _ in self._selected()]
        if self.ascent == "previous":
            # Before the base's hooks run: a loop or a hook may zero gradients in place.
            gradients = {param: param.grad for param in selected if param.grad is not None}
            self._progress.copies = copies_of(gradients)
        elif self._progress.copies is None:  # LBFGS has changed the weights when it asks again
            self._progress.copies = copies_of({param: param for param in selected})

    def _stepped(self, is_probe: bool) -> None:
        if self.ascent == "current":
            return
        copies = self._progress.copies or {}
        if self.ascent == "update":
            subtract_params_(copies)
        keep(self.state, _KEYS[self.ascent], copies, self._params())

    def state_dict(self) -> dict[str, Any]:
        state_dict = super().state_dict()
        if self.ascent == "current":
            return state_dict
        begun = bool(self.state) or self._step_number() > 0
        named = {param for param, _, _ in self._selected()} if begun else set()
        return save_kept(self.state, _KEYS[self.ascent], self._params(), state_dict, named)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        params = self._params()
        key = _KEYS.get(self.ascent, "")
        directions = load_kept(key, params, state_dict) if key else {}
        super().load_state_dict(state_dict)
        drop(self.state, _KEYS.values())
        keep(self.state, key, directions, params)

    def _describe(self) -> str:
        return f"{super()._describe()}, steps={self.steps}, ascent={self.ascent!r}"
