"""What both wrappers share: when and how to perturb, and what a checkpoint holds of it."""

import math
import sys
import warnings
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler, OptState
from torch.optim import Optimizer

from torch_awp.arguments import (
    Select,
    checked_choice,
    checked_integer,
    checked_real,
    checked_select,
    is_selected,
)
from torch_awp.delegation import DelegatingOptimizer, step_of
from torch_awp.gradients import Marks, adding_refused, computed_since, marks
from torch_awp.passes import Block, Pass, Passes
from torch_awp.perturbation import Layer, Perturbation
from torch_awp.sharding import any_nonzero

Closure = Callable[[], Any]
Constraint = Literal["layer", "element"]

GAMMA_KEY = "perturb_gamma"
STEP_KEY = "perturb_step"
BLOCK = "a perturb() block"

# Below half the spacing between numbers most moves of a weight relative to itself round away.
_SMALLEST_GAMMA = {dtype: torch.finfo(dtype).eps / 2 for dtype in (torch.bfloat16, torch.float16)}


class RealisedGamma(NamedTuple):
    """How far a parameter group moved, relative to its weights, beside what was asked for."""

    asked: float
    realised: float


@dataclass(eq=False)
class Progress:
    """What changes while training: one object, since trainers copy an optimizer's ``__dict__``."""

    visit: str | None = None  # the form that is open now
    perturbation: Callable[[], Perturbation | None] = lambda: None  # weak: who opened it owns it
    marks: Marks | None = None  # gradients before those to step on, once these are due
    copies: dict[Tensor, Tensor] | None = None  # before the base steps: weights, or gradients
    visited: bool = False  # the last block or loop since the last step computed these
    stepping: bool = False  # the base steps for its wrapper, not by itself
    scaler: Callable[[], GradScaler | None] = lambda: None  # weak: the one that stepped last
    steps: int = 0  # successful ones, where no group tells
    places: dict[int, Layer] = field(default_factory=dict)  # of the last stay
    warned: set[str] = field(default_factory=set)

    @property
    def away(self) -> bool:
        """Whether any weight has left home, to which it is not back yet."""
        perturbation = self.perturbation()
        return perturbation is not None and perturbation.away


class WeightPerturbation(DelegatingOptimizer):
    """An optimizer that is its base in everything but the weights its gradients are taken at.

    Use :class:`~torch_awp.AdversarialWeightPerturbation` or
    :class:`~torch_awp.RandomWeightPerturbation`.

    Attributes:
        base: the wrapped optimizer. ``param_groups``, ``state``, ``defaults`` and all hooks of the
            wrapper are the base's own objects, attributes that ``Optimizer`` does not have too.
    """

    # In a group, the gamma given to those without one of their own; says whose it is.
    _default_key: ClassVar[str]
    _others_default_key: ClassVar[str]
    # Passes before the last one.
    _climbs = 0
    _keeps_memory = True

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
        base = _checked_base(optimizer)
        self.default_gamma = checked_real("gamma", gamma)
        self.constraint = checked_choice("constraint", constraint, ("layer", "element"))
        self.select = checked_select(select, optimizer)
        self.interval = checked_integer("interval", interval, minimum=1)
        self.start_step = checked_integer("start_step", start_step, minimum=0)
        self.epsilon = checked_real("epsilon", epsilon)
        super().__init__(base)
        self._forget_earlier_default()
        self._fill_groups()

    @abstractmethod
    def _climb(self, perturbation: Perturbation) -> None:
        """Move every selected tensor that has somewhere to go."""

    def _can_climb(self) -> bool:
        """Whether a tensor would move if weights were perturbed now."""
        return bool(self._selected())

    def _step_size_of(self, gamma: float) -> float:
        """How far one move of a tensor with this gamma goes, relative to its norm."""
        return gamma

    def _gradients_ready(self, is_probe: bool) -> None:
        """Called when the gradients that the base is about to use are there."""

    def _stepped(self, is_probe: bool) -> None:
        """Called after the base has stepped."""

    # -- the three forms -------------------------------------------------------------------------

    def passes(self) -> Iterable[Pass]:
        """The forward and backward passes of this step, each at the weights it is to see.

        Clear the gradients and compute new ones in each; ``step()`` belongs after the loop, where
        the weights are home bit for bit, in the same storage, as they are however the loop is left.
        Every mode takes the same loop, a step that does not perturb too.

        Raises:
            RuntimeError: inside another loop or block of this optimizer, and where a pass of a step
                that perturbs adds to older gradients.

        >>> import torch
        >>> from torch_awp import AdversarialWeightPerturbation
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = AdversarialWeightPerturbation(torch.optim.SGD(model.parameters(), lr=0.1))
        >>> for p in optimizer.passes():
        ...     optimizer.zero_grad()
        ...     model(torch.ones(2, 4)).square().mean().backward()
        ...     print(p)
        Pass(index=0, climbs=True, perturbed=False)
        Pass(index=1, climbs=False, perturbed=True)
        >>> optimizer.step()
        """
        self._refuse_while_away("passes")
        return Passes(self._run_passes)

    def _run_passes(self) -> Iterator[Pass]:
        with self._visit("a loop over passes()") as perturbation:
            if not self._perturbs_now():
                yield Pass(0, climbs=False, perturbed=False)
                return
            params = self._params()
            for index in range(self._climbs + 1):
                if index > 0 or self._climbs == 0:
                    self._climb(perturbation)
                is_last = index == self._climbs
                self._progress.marks = marks(params) if is_last else None
                with adding_refused(params):
                    yield Pass(index, not is_last, perturbation.away)

    def perturb(self) -> AbstractContextManager[None]:
        """Context in which the weights are at ``w + v``; on leaving they are back bit for bit.

        The weights come back in the same storage, also after an exception or KeyboardInterrupt.
        On a step that does not perturb (``interval``, ``start_step``, gamma 0) nothing moves.

        Raises:
            RuntimeError: inside another block or loop of this optimizer.
        """
        self._refuse_while_away("perturb")
        return Block(lambda: self._visit(BLOCK, climbs=True))

    @contextmanager
    def _visit(self, name: str, climbs: bool = False) -> Iterator[Perturbation]:
        """The one way to ``w + v`` and home again."""
        self._refuse_while_away(name)
        self._refuse_unscaled_gradients()
        progress = self._progress
        perturbation = Perturbation(
            self.constraint, self.epsilon, progress.places, self._keeps_memory
        )
        params = self._params()
        progress.marks = marks(params) if climbs else None
        try:
            progress.visit, progress.perturbation = name, weakref.ref(perturbation)
            with perturbation:
                if climbs and self._perturbs_now():
                    self._climb(perturbation)
                yield perturbation
        finally:
            progress.visit = None
            progress.visited = progress.marks is not None and computed_since(progress.marks, params)

    def step(self, closure: Closure | None = None, *args: Any, **kwargs: Any) -> Any:
        """Let the base step, with a closure on the gradients at perturbed weights.

        Args:
            closure: clears the gradients, computes the loss, calls ``backward`` and returns the
                loss. Without it the base steps on the gradients that are there, which a loop over
                :meth:`passes` or a :meth:`perturb` block has made.
            *args: further arguments of the base's ``step``.
            **kwargs: further arguments of the base's ``step``.

        Returns:
            The loss of the closure's first call, or what the base returns where there is none.

        Raises:
            RuntimeError: inside a block or loop, if the base never calls the closure, if the
                closure computes no gradient or adds to older ones on a step that perturbs, or if
                the base differentiates gradients that belong to perturbed weights.
        """
        self._refuse_while_away("step")
        self._progress.copies = None  # of a step that failed
        is_probe = closure is None and self._is_state_probe()
        perturbs = self._perturbs_now()
        if closure is None:
            missed = perturbs and not (is_probe or self._progress.visited) and self._can_climb()
            self._gradients_ready(is_probe)
            loss, stepped = self._step_base(*args, **kwargs)
            if stepped and missed:
                self._warn_once(
                    "step",
                    "step() on gradients of unperturbed weights: none was computed in a loop over "
                    "passes(), a perturb() block or a closure, as in a trainer's own loop. "
                    "Override its training step (README, recipes), or set gamma to 0",
                )
        else:
            first_losses: list[Any] = []
            closure = self._closure_for_base(closure, perturbs, first_losses)
            # Through the base's own closure, so that optimizers which need one (LBFGS) work too.
            loss, stepped = self._step_base(closure, *args, **kwargs)
            if perturbs and stepped:
                if not first_losses:
                    raise RuntimeError(
                        f"{type(self.base).__name__}.step() never called its closure"
                    )
                loss = first_losses[0]
        if stepped:
            self._stepped(is_probe)
            self._progress.visited = False
            if not is_probe:
                self._count(self._step_number() + 1)
        self._progress.copies = None
        return loss

    def _closure_for_base(
        self, closure: Closure, perturbs: bool, first_losses: list[Any]
    ) -> Closure:
        """The closure's evaluation that leaves the gradients to step with."""

        def closure_for_base() -> Any:
            params = self._params()
            losses = []
            with torch.enable_grad():
                for _ in self._run_passes():
                    before = self._progress.marks or marks(params)  # the last pass has made them
                    losses.append(closure())
                    if perturbs and not computed_since(before, params):
                        if self._progress.visited:  # Lightning's manual optimization brings an
                            break  # empty closure to the step after the user's own loop
                        raise RuntimeError(
                            "the closure computed no gradient, on a step that perturbs: it must "
                            "clear the gradients, compute the loss, call backward() and return "
                            "the loss"
                        )
            self._gradients_ready(is_probe=False)
            first_losses.append(losses[0])
            return losses[-1]

        return closure_for_base

    def _step_base(self, *args: Any, **kwargs: Any) -> tuple[Any, bool]:
        self._progress.stepping = True
        try:
            return step_of(self.base, *args, **kwargs)
        except RuntimeError as error:
            if "modified by an inplace operation" in str(error):
                raise RuntimeError(
                    f"{type(self.base).__name__}.step() differentiates the gradients once more, "
                    "but they belong to perturbed weights, which are home again: a second-order "
                    "base cannot be perturbed"
                ) from error
            raise
        finally:
            self._progress.stepping = False

    # -- looking at it ---------------------------------------------------------------------------

    def realised_gammas(self) -> list[RealisedGamma]:
        """Measure how far the weights are from home now; inside a block or loop.

        This waits for the accelerator and, where weights are sharded, for the other processes,
        all of which must ask.

        Returns:
            For each parameter group the gamma asked for and the realised ``||v|| / ||w||`` of all
            its tensors together that had a direction; 0 where none had.

        Raises:
            RuntimeError: outside a block or loop.
        """
        perturbation = self._open_perturbation("realised_gammas")
        return [
            RealisedGamma(gamma, perturbation.relative_distance(group["params"]))
            for group, gamma in zip(self.param_groups, self._group_gammas(), strict=True)
        ]

    @property
    def gamma(self) -> float:
        """The magnitude of groups without one of their own; assigning reaches those groups."""
        return self.default_gamma

    @gamma.setter
    def gamma(self, value: float) -> None:
        value = checked_real("gamma", value)
        for group in self.param_groups:
            if group.get(GAMMA_KEY, self.default_gamma) == self.default_gamma:
                group[GAMMA_KEY] = value
        self.default_gamma = value
        self.param_groups[0][self._default_key] = value

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._describe()}, base={self.base!r})"

    def _describe(self) -> str:
        gammas = list(dict.fromkeys(self._group_gammas()))
        shown = f"{gammas[0]:g}" if len(gammas) == 1 else f"[{', '.join(f'{g:g}' for g in gammas)}]"
        return f"gamma={shown}, constraint={self.constraint!r}"

    # -- when and what ---------------------------------------------------------------------------

    def _perturbs_now(self) -> bool:
        return any(self._group_gammas()) and self._is_due(self._step_number())

    def _is_due(self, step: int) -> bool:
        return step >= self.start_step and (step - self.start_step) % self.interval == 0

    def _step_number(self) -> int:
        """The number of successful steps so far; every group has it, since groups come and go."""
        counts = [int(group[STEP_KEY]) for group in self.base.param_groups if STEP_KEY in group]
        return max(counts, default=self._progress.steps)

    def _count(self, steps: int) -> None:
        self._progress.steps = steps
        for group in self.base.param_groups:
            group[STEP_KEY] = steps

    def _params(self) -> list[Tensor]:
        return [param for group in self.base.param_groups for param in group["params"]]

    def _group_gammas(self) -> list[float]:
        gammas = [group.get(GAMMA_KEY, self.default_gamma) for group in self.base.param_groups]
        for i, gamma in enumerate(gammas):
            if not (type(gamma) is float and 0 <= gamma < math.inf):
                gammas[i] = checked_real(f"param_groups[{i}]['{GAMMA_KEY}']", gamma)
        return gammas

    def _selected(self) -> list[tuple[Tensor, float, dict[str, Any]]]:
        """Every trainable tensor that may move, once, with its group's gamma and its group."""
        checked_select(self.select, self.base)  # groups can have been assigned since
        selected = []
        seen: set[int] = set()
        for group, gamma in zip(self.base.param_groups, self._group_gammas(), strict=True):
            params = group["params"] if gamma > 0 else []
            names = group["param_names"] if params and self.select else repeat("", len(params))
            for param, name in zip(params, names, strict=True):
                if param.requires_grad and id(param) not in seen:
                    seen.add(id(param))
                    if is_selected(self.select, name, param):
                        selected.append((param, gamma, group))
        for gamma, dtype in dict.fromkeys((gamma, param.dtype) for param, gamma, _ in selected):
            self._warn_if_too_small(gamma, dtype)
        return selected

    def _is_state_probe(self) -> bool:
        """Whether this step only creates state, as torch.distributed.checkpoint does.

        It steps an optimizer without state on zero gradients with a zero learning rate.
        """
        if self.state:
            return False
        lrs = [group.get("lr", 0) for group in self.param_groups]
        # Looking at one on an accelerator would wait.
        if any(isinstance(lr, Tensor) and lr.device.type != "cpu" for lr in lrs) or any(lrs):
            return False
        grads = [param.grad for param in self._params() if param.grad is not None]
        return bool(grads) and not any(any_nonzero(grad) for grad in grads)

    # -- what silence would hide -----------------------------------------------------------------

    def _open_perturbation(self, what: str) -> Perturbation:
        perturbation = self._progress.perturbation()
        if self._progress.visit is None or perturbation is None:
            raise RuntimeError(f"{what}() outside a perturb() block: enter one first")
        return perturbation

    def _refuse_while_away(self, what: str) -> None:
        visit = self._progress.visit
        if visit is None and self._progress.away:
            visit = "a block or loop that could not be left"
        if visit is not None:
            raise RuntimeError(f"{what}() inside {visit}: leave it first")

    def _refuse_to_save_while_away(self, what: str) -> None:
        """In the first pass of a loop the weights are home, so a checkpoint is as good as ever."""
        if self._progress.visit == BLOCK or self._progress.away:
            self._refuse_while_away(what)

    def _warn_once(self, about: str, message: str) -> None:
        if about not in self._progress.warned:
            self._progress.warned.add(about)
            warnings.warn(message, stacklevel=3)

    def _warn_if_too_small(self, gamma: float, dtype: torch.dtype) -> None:
        smallest = _SMALLEST_GAMMA.get(dtype)
        if smallest is None:
            return
        step_size = min(gamma, self._step_size_of(gamma))
        if step_size < smallest:
            steps = f" in steps of {step_size:g}" if step_size < gamma else ""
            self._warn_once(
                "gamma",
                f"gamma={gamma:g}{steps} is below {smallest:g}, half the relative spacing of "
                f"{dtype} parameters: most of the perturbation rounds away. Use a larger gamma "
                "or step, or float32 parameters (under autocast, say); realised_gammas() inside "
                "perturb() measures what is left",
            )

    def _is_anything_selected(self, known: bool) -> bool:
        """Whether a tensor may move; warns where none may though there are some to train."""
        if known or self._selected():
            return True
        groups = zip(self.param_groups, self._group_gammas(), strict=True)
        params = [param for group, gamma in groups if gamma > 0 for param in group["params"]]
        if any(param.requires_grad and param.numel() for param in params):
            reason = (
                "all have one dimension (flat parameters, as FSDP1, DeepSpeed and flat buffers "
                "make them?); select=lambda name, param: True takes those"
                if self.select is None
                else "select picks none: look at its names"
            )
            self._warn_once("select", f"no tensor is perturbed: {reason}")
        return False

    def _refuse_unscaled_gradients(self) -> None:
        scaler = self._progress.scaler()
        states = {} if scaler is None else scaler._per_optimizer_states
        if id(self) in states and states[id(self)]["stage"] is OptState.UNSCALED:
            raise RuntimeError(
                "the GradScaler has unscaled gradients that scaled ones are about to replace: call "
                "unscale_() after the loop or block, not before"
            )

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base's; a GradScaler reads them where it unscales, of which nothing else tells."""
        caller = sys._getframe(1)
        if caller.f_code.co_name == "_unscale_grads_":
            scaler = caller.f_locals.get("self")
            if isinstance(scaler, GradScaler):
                self._progress.scaler = weakref.ref(scaler)
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.base.param_groups = groups

    # -- state -----------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """The base's; the group may bring its own ``"perturb_gamma"``."""
        steps = self._step_number()
        self.base.add_param_group(param_group)
        self._fill_groups(steps)

    def state_dict(self) -> dict[str, Any]:
        """The base's state, with the few values of the wrapper in its parameter groups.

        Raises:
            RuntimeError: while weights are perturbed.
        """
        self._refuse_to_save_while_away("state_dict")
        self._fill_groups()
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of this wrapper or of the plain base.

        Without values of a wrapper in it, gammas and generator stay as they are and steps count
        from 0 again; gammas of the other wrapper are not taken over. Names of parameters stay.
        """
        self._refuse_while_away("load_state_dict")
        before = [(group.get(GAMMA_KEY), group.get("param_names")) for group in self.param_groups]
        self.base.load_state_dict(state_dict)
        own = any(self._default_key in group for group in self.param_groups)
        key = self._others_default_key
        others = [group.pop(key) for group in self.param_groups if key in group]
        for group, (gamma, names) in zip(self.param_groups, before, strict=True):
            if names is not None:
                group["param_names"] = names
            if gamma is not None and not own:
                group[GAMMA_KEY] = gamma
        if others and not own:
            self._warn_once(
                "load",
                f"gammas of another kind of weight perturbation in the checkpoint are not used: "
                f"{self._describe()} stays",
            )
        self._progress.steps = 0
        defaults = [g[self._default_key] for g in self.param_groups if self._default_key in g]
        self.default_gamma = float(defaults[0]) if defaults else self.default_gamma
        self._fill_groups()

    def __getstate__(self) -> dict[str, Any]:
        self._refuse_to_save_while_away("copying or pickling")
        return super().__getstate__()

    def _fill_groups(self, steps: int | None = None) -> None:
        steps = self._step_number() if steps is None else steps
        for group in self.param_groups:
            group.setdefault(GAMMA_KEY, self.default_gamma)
            group.setdefault(STEP_KEY, steps)
        for group in self.param_groups[:1]:
            group.setdefault(self._default_key, self.default_gamma)

    def _forget_earlier_default(self) -> None:
        """Let this wrapper's gamma replace what an earlier one of the same base filled in."""
        for key in (self._default_key, self._others_default_key):
            defaults = [group.pop(key) for group in self.param_groups if key in group]
            for group in self.param_groups:
                if group.get(GAMMA_KEY) in defaults:
                    del group[GAMMA_KEY]

    def _connect(self) -> None:
        super()._connect()
        self._progress = Progress()
        if hasattr(self, "_optimizer_step_pre_hooks"):
            self.register_step_pre_hook(partial(_watch_base, weakref.ref(self._progress)))


def _watch_base(wrapper: Callable[[], Progress | None], base: Optimizer, *_: Any) -> None:
    """Called before the base steps: not while its wrapper is away, and not in its place."""
    progress = wrapper()
    if progress is None or progress.stepping:
        return
    if progress.visit is not None:
        raise RuntimeError(f"{type(base).__name__}.step() inside {progress.visit}: leave it first")
    if progress.visited and "base" not in progress.warned:
        progress.warned.add("base")
        warnings.warn(
            f"{type(base).__name__}.step() after a block or loop of its wrapper, whose step() "
            "counts steps and keeps what single-pass modes climb along: call that",
            stacklevel=4,
        )


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
