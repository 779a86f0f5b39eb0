"""What both wrappers share: a base optimizer shown as one's own, and when and how to perturb."""

import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from torch_awp.arguments import (
    Select,
    checked_choice,
    checked_integer,
    checked_real,
    checked_select,
)
from torch_awp.block import Block, Move
from torch_awp.closures import Closure, clearing
from torch_awp.memory import BackupMemory
from torch_awp.sharding import any_nonzero

Constraint = Literal["layer", "element"]

GAMMA_KEY = "perturb_gamma"
STEP_KEY = "perturb_step"
DEFAULT_KEY = "perturb_default"
GRADIENT_KEY = "perturb_gradient"

# Below half the spacing between numbers most moves of a weight relative to itself round away.
_SMALLEST_GAMMA = {dtype: torch.finfo(dtype).eps / 2 for dtype in (torch.bfloat16, torch.float16)}


class RealisedGamma(NamedTuple):
    """How far a parameter group moved, relative to its weights, beside what was asked for."""

    asked: float
    realised: float


class Shared:
    """What changes while training: one object, since trainers copy an optimizer's ``__dict__``."""

    def __init__(self) -> None:
        self.block: Block | None = None
        self.gradients: dict[Tensor, Tensor] | None = None
        self.warned = False
        self.memory = BackupMemory()


class WeightPerturbation(Optimizer):
    """An optimizer that is its base in everything but the weights its gradients are taken at.

    Use :class:`~torch_awp.AdversarialWeightPerturbation` or
    :class:`~torch_awp.RandomWeightPerturbation`.

    Attributes:
        base: the wrapped optimizer. ``param_groups``, ``state``, ``defaults`` and all hooks of the
            wrapper are the base's own objects.
        gamma: the magnitude given to groups that do not bring their own ``"perturb_gamma"``.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        gamma: float,
        *,
        constraint: Constraint,
        select: Select | None,
        interval: int,
        start_step: int,
        epsilon: float,
    ) -> None:
        # Optimizer.__init__ is left out: it would make groups, state and hooks beside the base's.
        self.base = _checked_base(optimizer)
        self.gamma = checked_real("gamma", gamma)
        self.constraint = checked_choice("constraint", constraint, ("layer", "element"))
        self.select = checked_select(select, optimizer)
        self.interval = checked_integer("interval", interval, minimum=1)
        self.start_step = checked_integer("start_step", start_step, minimum=0)
        self.epsilon = checked_real("epsilon", epsilon)
        self._connect()
        self._forget_earlier_default()
        self._fill_groups([self.gamma] * len(self.param_groups))

    @abstractmethod
    def _moves(self) -> Iterator[Move]:
        """The next move of every selected tensor that has somewhere to go."""

    @abstractmethod
    def _evaluate(self, closure: Closure) -> tuple[Any, Any]:
        """Leave the gradients to step with; return the first loss and the one they belong to."""

    def _evaluate_once(self, closure: Closure) -> tuple[Any, Any]:
        """:meth:`_evaluate` of a mode that needs no clean pass."""
        with self.perturb():
            loss = closure()
        return loss, loss

    def _gradients_ready(self, is_probe: bool) -> None:
        """Called when the gradients that the base is about to use are there."""

    def _stepped(self) -> None:
        """Called after the base has stepped."""

    # -- perturbing ------------------------------------------------------------------------------

    def step(self, closure: Closure | None = None) -> Any:
        """Let the base step, with a closure on the gradients at perturbed weights.

        Args:
            closure: clears the gradients, computes the loss, calls ``backward`` and returns the
                loss. Without it the base steps on the gradients that are there, which
                :meth:`perturb` can have made.

        Returns:
            The loss of the closure's first call, or what the base returns where there is none.

        Raises:
            RuntimeError: inside a :meth:`perturb` block, if the base never calls the closure, or
                if the closure adds to older gradients on a step that perturbs.
        """
        self._refuse_inside_block("step")
        is_probe = closure is None and self._is_state_probe()
        if closure is None:
            self._gradients_ready(is_probe)
            loss = self.base.step()
        else:
            loss = self._step_with_closure(closure)
        self._stepped()
        if not is_probe:
            self.param_groups[0][STEP_KEY] = self._step_number() + 1
        return loss

    def _step_with_closure(self, closure: Closure) -> Any:
        perturbs = self._perturbs_now()
        if perturbs:
            params = [p for group in self.param_groups for p in group["params"]]
            closure = clearing(closure, params)
        first_losses = []

        def closure_for_base() -> Any:
            with torch.enable_grad():
                first, last = self._evaluate(closure) if perturbs else [closure()] * 2
            self._gradients_ready(is_probe=False)
            first_losses.append(first)
            return last

        # Through the base's own closure, so that optimizers which need one (LBFGS) work too.
        loss = self.base.step(closure_for_base)
        if perturbs and not first_losses:
            raise RuntimeError(f"{type(self.base).__name__}.step() never called its closure")
        return first_losses[0] if perturbs else loss

    def perturb(self) -> AbstractContextManager[None]:
        """Context in which the weights are at ``w + v``; on leaving they are back bit for bit.

        The weights come back in the same storage, also after an exception or KeyboardInterrupt.
        On a step that does not perturb (``interval``, ``start_step``, gamma 0) nothing moves.

        Raises:
            RuntimeError: inside another block of this optimizer.
        """
        self._refuse_inside_block("perturb")
        return self._perturbed()

    @contextmanager
    def _perturbed(self) -> Iterator[None]:
        self._refuse_inside_block("perturb")
        memory = self._shared.memory
        block = Block(self.constraint, self.epsilon, self._perturbs_now(), memory)
        self._shared.block = block
        try:
            if block.active:
                block.move(self._moves())
            yield
        finally:
            try:
                block.restore()
            except BaseException:  # a second Ctrl-C, say: restoring twice is harmless, half is not
                block.restore()
                raise
            finally:
                self._shared.block = None
                if block.active:
                    memory.take_back()

    def realised_gammas(self) -> list[RealisedGamma]:
        """Measure how far the weights are from home now; inside a :meth:`perturb` block.

        This waits for the accelerator and, where weights are sharded, for the other processes,
        all of which must ask.

        Returns:
            For each parameter group the gamma asked for and the realised ``||v|| / ||w||`` of all
            its tensors together that had a direction; 0 where none had.

        Raises:
            RuntimeError: outside a block.
        """
        block = self._shared.block
        if block is None:
            raise RuntimeError("realised_gammas() outside a perturb() block: enter one first")
        records = []
        for group, gamma in zip(self.param_groups, self._group_gammas(), strict=True):
            records.append(RealisedGamma(gamma, block.relative_distance(group["params"])))
        return records

    def _warn_if_too_small(self, gamma: float, dtype: torch.dtype) -> None:
        if gamma < _SMALLEST_GAMMA.get(dtype, 0.0) and not self._shared.warned:
            self._shared.warned = True
            warnings.warn(
                f"gamma={gamma:g} is below {_SMALLEST_GAMMA[dtype]:g}, half the relative spacing "
                f"of {dtype} parameters: most of the perturbation rounds away. Use a larger gamma "
                "or float32 parameters (under autocast, say); realised_gammas() inside perturb() "
                "measures what is left",
                stacklevel=2,
            )

    def _refuse_inside_block(self, what: str) -> None:
        if self._shared.block is not None:
            raise RuntimeError(f"{what}() inside a perturb() block: leave the block first")

    def _perturbs_now(self) -> bool:
        return self._is_due(self._step_number()) and any(self._group_gammas())

    def _is_due(self, step: int) -> bool:
        return step >= self.start_step and (step - self.start_step) % self.interval == 0

    def _step_number(self) -> int:
        """The number of successful steps so far; it lives in a group to be part of checkpoints."""
        return max(int(group.get(STEP_KEY, 0)) for group in self.param_groups)

    def _group_gammas(self) -> list[float]:
        return [
            checked_real(f"param_groups[{i}]['{GAMMA_KEY}']", group.get(GAMMA_KEY, self.gamma))
            for i, group in enumerate(self.param_groups)
        ]

    def _selected(self) -> Iterator[tuple[Tensor, float]]:
        """Every trainable tensor that may move, once, with its group's gamma."""
        checked_select(self.select, self.base)  # groups can have been assigned since
        seen: set[int] = set()
        for group, gamma in zip(self.param_groups, self._group_gammas(), strict=True):
            params = group["params"]
            names = group.get("param_names", [""] * len(params))
            for param, name in zip(params, names, strict=True):
                if gamma > 0 and id(param) not in seen and self._may_move(name, param):
                    seen.add(id(param))
                    self._warn_if_too_small(gamma, param.dtype)
                    yield param, gamma

    def _may_move(self, name: str, param: Tensor) -> bool:
        if not param.requires_grad:
            return False
        return param.ndim > 1 if self.select is None else bool(self.select(name, param))

    def _is_state_probe(self) -> bool:
        """Whether this step only creates state, as torch.distributed.checkpoint does.

        It steps an optimizer without state on zero gradients with a zero learning rate.
        """
        lrs = [group.get("lr", 0) for group in self.param_groups]
        if self.state or any(isinstance(lr, Tensor) and lr.device.type != "cpu" for lr in lrs):
            return False
        if any(lrs):
            return False
        params = [param for group in self.param_groups for param in group["params"]]
        grads = [param.grad for param in params if param.grad is not None]
        return bool(grads) and not any(any_nonzero(grad) for grad in grads)

    # -- being the base --------------------------------------------------------------------------

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.base.param_groups = groups

    @property
    def state(self) -> Any:
        return self.base.state

    @state.setter
    def state(self, state: Any) -> None:
        self.base.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        return self.base.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.base.defaults = defaults

    def zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """The base's, whatever arguments it takes."""
        self.base.zero_grad(*args, **kwargs)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """The base's; the group may bring its own ``"perturb_gamma"``."""
        self.base.add_param_group(param_group)
        self._fill_groups([self.gamma] * len(self.param_groups))

    def state_dict(self) -> dict[str, Any]:
        """The base's state, with the few values of the wrapper in its parameter groups.

        Raises:
            RuntimeError: inside a :meth:`perturb` block.
        """
        self._refuse_inside_block("state_dict")
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of this wrapper or of the plain base.

        Without values of a wrapper in it, gammas stay as they are and steps count from 0 again.
        """
        self._refuse_inside_block("load_state_dict")
        gammas = [group.get(GAMMA_KEY, self.gamma) for group in self.param_groups]
        self.base.load_state_dict(state_dict)
        self._fill_groups(gammas)
        if getattr(self, "ascent", "current") == "current":
            drop_gradients(self.state)

    def _fill_groups(self, gammas: list[float]) -> None:
        for group, gamma in zip(self.param_groups, gammas, strict=True):
            group.setdefault(GAMMA_KEY, gamma)
        self.param_groups[0].setdefault(STEP_KEY, 0)
        self.param_groups[0].setdefault(DEFAULT_KEY, self.gamma)

    def _forget_earlier_default(self) -> None:
        """Let this wrapper's gamma replace what an earlier one of the same base filled in."""
        earlier = self.param_groups[0].pop(DEFAULT_KEY, None)
        for group in self.param_groups:
            if earlier is not None and group.get(GAMMA_KEY) == earlier:
                del group[GAMMA_KEY]

    def _connect(self) -> None:
        self._shared = Shared()
        # The very dictionaries of the base: a hook registered here fires once, in the base.
        hooks = {
            key: value for key, value in vars(self.base).items() if key.startswith("_optimizer")
        }
        self.__dict__.update(hooks)

    def __getstate__(self) -> dict[str, Any]:
        # Left out: hooks, as in every torch optimizer, and the `step` that a scheduler puts into
        # the instance, which would step the original of a copy.
        return {
            key: value
            for key, value in vars(self).items()
            if not key.startswith("_") and key != "step"
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._connect()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._describe()}, base={self.base!r})"

    def _describe(self) -> str:
        return f"gamma={self.gamma:g}, constraint={self.constraint!r}"


def drop_gradients(state: Any) -> None:
    """Take the gradients that ``ascent="previous"`` keeps out of an optimizer's state."""
    for values in state.values():
        if isinstance(values, dict):  # some optimizers keep single values beside
            values.pop(GRADIENT_KEY, None)


def _checked_base(optimizer: Any) -> Optimizer:
    if isinstance(optimizer, type):
        raise TypeError(
            f"optimizer must be a constructed optimizer, got the class {optimizer.__name__}: "
            f"write {optimizer.__name__}(model.parameters(), ...)"
        )
    if isinstance(optimizer, WeightPerturbation):
        raise ValueError(
            f"optimizer must not be a weight perturbation itself, got {type(optimizer).__name__}: "
            "wrap its base"
        )
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
        )
    return optimizer
