"""What both wrappers share: the base they stand for, when and what to perturb, and the state."""

import math
import sys
import warnings
import weakref
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from torch_awp import sharding
from torch_awp.functional import on_host
from torch_awp.perturbation import Perturbation, Saved

if TYPE_CHECKING:
    from torch_awp.attach import Attachment

Closure = Callable[[], Any]
Constraint = Literal["layer", "element"]
Select = Callable[[str, Tensor], bool]
Gradients = Mapping[Tensor, Tensor]
Selected = list[tuple[Tensor, float, dict[str, Any]]]  # each with its group's gamma, and its group

GAMMA_KEY, STEP_KEY = "perturb_gamma", "perturb_step"
DEFAULT_KEY = "perturb_default"  # the gamma that the wrapper gave to a group
UPDATE_KEY = "perturb_update"  # in a checkpoint, beside the base's state of a tensor
ATTACHMENT = "perturb_attachment"  # in a copy
LOOP, BLOCK = "a loop over passes()", "a perturb() block"
_UNPERTURBED = (
    "they were computed outside a loop over passes(), a perturb() block or a closure. For a "
    "trainer's own loop call optimizer.attach(model) first; for no perturbation set gamma to 0"
)

# What may be called between the user's line, which a warning shows, and ours.
_BETWEEN = ("torch_awp", "torch", "contextlib")
# Below half the spacing between numbers most moves of a weight relative to itself round away.
_SMALLEST_GAMMA = {dtype: torch.finfo(dtype).eps / 2 for dtype in (torch.bfloat16, torch.float16)}


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of a step.

    Attributes:
        index: 0, 1, ... within the step.
        climbs: its gradient is used to compute `v` only: another pass follows.
        perturbed: the weights are at `w + v`.
        inputs: the tensors whose gradients this pass has to compute, for
            `backward(inputs=p.inputs)`: those that may move if it climbs, otherwise `None` (all).
    """

    index: int
    climbs: bool
    perturbed: bool
    inputs: list[Tensor] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, repr=False)
class Passes:
    """The passes of one step. Each `for` gets a generator that ends, and restores, with it."""

    optimizer: "WeightPerturbation"

    def __iter__(self) -> Iterator[Pass]:
        return self.optimizer._passes(LOOP)


@dataclass(eq=False)
class RunState:
    """What changes while training: one object, since trainers copy an optimizer's `__dict__`."""

    inside: str | None = None  # the form that is open now
    perturbation: Callable[[], Perturbation | None] = lambda: None  # weak: who opened it owns it
    current_pass: Pass | None = None
    versions: list[tuple[Tensor, Any]] = field(default_factory=list)  # of gradients, as it began
    cleared: bool = False  # by the wrapper's zero_grad, since it began
    has_gradients: bool | None = None  # to step on, of a block or loop; None: none has run
    in_closure: bool = False  # the base evaluates the closure
    is_probe: bool = False
    missed: str | None = None  # why this step's gradients are not those of perturbed weights
    steps: int = 0  # successful ones, where no group tells
    before: dict[Tensor, Tensor] = field(default_factory=dict)  # weights, while the base steps
    update: dict[Tensor, Tensor] = field(default_factory=dict)  # minus the change of the last step
    saved: dict[Tensor, Saved] = field(default_factory=dict)  # by the last perturbation
    warned: set[str] = field(default_factory=set)
    attachment: Callable[[], "Attachment | None"] = lambda: None  # weak: the module's hooks own it

    def __reduce__(self) -> Any:
        """Copies begin anew, but for what belongs to the run and not to the process."""
        return RunState, (), {"steps": self.steps, "update": self.update}


def _of_base(name: str) -> Any:
    """An attribute whose value is the base's, to read and to assign."""
    return property(
        lambda self: getattr(self.base, name), lambda self, value: setattr(self.base, name, value)
    )


class WeightPerturbation(Optimizer):
    """An optimizer that does what its base does, with gradients of perturbed weights.

    Use :class:`~torch_awp.AdversarialWeightPerturbation` or
    :class:`~torch_awp.RandomWeightPerturbation`.

    Attributes:
        base: the wrapped optimizer. `param_groups`, `state`, `defaults`, all hooks and further
            attributes of the wrapper are the base's own objects.
    """

    param_groups: list[dict[str, Any]] = _of_base("param_groups")
    state: Any = _of_base("state")
    defaults: dict[str, Any] = _of_base("defaults")

    _ascent_steps = 0  # passes before the last one

    def __init__(
        self,
        optimizer: Any,
        gamma: float,
        constraint: Constraint,
        select: Select | None,
        interval: int,
        start_step: int,
        epsilon: float,
    ) -> None:
        # Optimizer.__init__ is left out: it would make groups, state and hooks beside the base's.
        if isinstance(optimizer, WeightPerturbation):
            raise ValueError(f"optimizer must not be wrapped already, got {optimizer!r}")
        if not isinstance(optimizer, Optimizer):
            expected = "a constructed torch.optim.Optimizer (SGD(model.parameters(), lr=0.1))"
            raise TypeError(f"optimizer must be {expected}, got {optimizer!r}")
        valid = select is None or callable(select)
        require(valid, "select", select, "None or (name, param) -> bool")
        require(
            constraint in ("layer", "element"), "constraint", constraint, "'layer' or 'element'"
        )
        self.constraint, self.select, self.base = constraint, select, optimizer
        self.default_gamma = checked_real("gamma", gamma)
        self.epsilon = checked_real("epsilon", epsilon)
        self.interval = checked_integer("interval", interval, minimum=1)
        self.start_step = checked_integer("start_step", start_step, minimum=0)
        self._run = RunState()
        replaced = self._connect()
        if replaced is not None and (attachment := replaced.attachment()) is not None:
            attachment.remove()  # which restores the weights
        for group in self.param_groups:  # what an earlier wrapper of this base filled in
            if group.pop(DEFAULT_KEY, None) == group.get(GAMMA_KEY):
                group.pop(GAMMA_KEY, None)
        self._fill_groups()
        if select is not None:
            self._selected()  # refuses one that cannot be asked

    @abstractmethod
    def _ascend(self, perturbation: Perturbation, gradients: Gradients | None = None) -> None:
        """Perturb every selected tensor that has a direction; `gradients` replace their own."""

    def _step_size(self, gamma: float) -> float:
        """The length of one ascent step of a tensor, relative to its norm."""
        return gamma

    def _would_move(self) -> bool:
        """Whether a tensor would move if weights were perturbed now."""
        return bool(self._selected())

    # -- the three forms -------------------------------------------------------------------------

    def passes(self) -> Passes:
        """Return the forward and backward passes of this step, to iterate over with `for`.

        Clear the gradients and compute new ones in each pass, and call `step()` after the loop.
        When the loop ends, by `break` or an exception too, the weights are restored bit for bit,
        in the same storage. The same loop works in every mode and on steps that do not perturb.

        Raises:
            RuntimeError: inside another loop or block of this optimizer, or if a pass of a step
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
        self._refuse_while_open("passes", by_hand=True)
        return Passes(self)

    def perturb(self) -> AbstractContextManager[Pass]:
        """Return a context in which the weights are at `w + v`, which gives its :class:`Pass`.

        It restores them bit for bit, in the same storage, also after an exception or
        KeyboardInterrupt. On a step that does not perturb (`interval`, `start_step`, gamma 0) it
        changes nothing.

        Raises:
            RuntimeError: inside another block or loop of this optimizer.
        """
        self._refuse_while_open("perturb", by_hand=True)
        return self._block(BLOCK)

    def _passes(self, form: str) -> Generator[Pass, Gradients | None, None]:
        """The passes of a step; of a block the last one only.

        What is sent replaces the gradients of a pass that climbs.
        """
        with self._open(form) as perturbation:
            due, block, gradients = self._is_due(), form == BLOCK, None
            last = self._ascent_steps if due or block else 0
            for index in range(last if block else 0, last + 1):
                if due and (index > 0 or last == 0):
                    self._ascend(perturbation, gradients)
                gradients = None  # not to be held while the next pass runs
                climbs = index < last
                inputs = self._inputs() if climbs else None
                this = Pass(index, climbs, perturbation.active, inputs)
                with self._watched(this, refuse_adding=due and form == LOOP):
                    gradients = yield this

    _block = contextmanager(_passes)

    def attach(self, module: nn.Module, loss: Callable[..., Tensor] | None = None) -> "Attachment":
        """Perturb in the forward passes of a module, for a training loop that does not change.

        On a step that perturbs, a forward pass in training mode with gradients enabled runs at
        `w + v`. The weights are restored when the backward pass through its output has ended.
        Only tensors of the module are perturbed. AWP calls the module once more for each ascent
        step, to compute the gradients of its loss with `torch.autograd.grad`; only the first call
        updates running statistics. The loss that the loop logs is that at `w + v`.

        Args:
            module: the model that a trainer calls, or its end.
            loss: `loss(output, *args, **kwargs)` returns the scalar loss of `output =
                module(*args, **kwargs)`. Without it: the output itself, its `.loss`, its
                `["loss"]`, its first element, or the sum of its scalars that need a gradient.
                Modes of one pass do not need it.

        Returns:
            A handle: `handle.remove()` detaches, `with handle.paused():` perturbs nothing.

        Raises:
            RuntimeError: the optimizer or the module is attached already, or the optimizer has no
                tensor of the module.
            TypeError, ValueError: a module that cannot be attached.

        >>> import torch
        >>> from torch_awp import AdversarialWeightPerturbation
        >>> class Regression(torch.nn.Linear):
        ...     def forward(self, x, y):
        ...         return torch.nn.functional.mse_loss(super().forward(x), y)
        >>> model = Regression(4, 1)
        >>> optimizer = AdversarialWeightPerturbation(torch.optim.SGD(model.parameters(), lr=0.1))
        >>> handle = optimizer.attach(model)
        >>> loss = model(torch.ones(2, 4), torch.ones(2, 1))
        >>> optimizer.current_pass
        Pass(index=1, climbs=False, perturbed=True)
        >>> loss.backward()
        >>> optimizer.step()
        """
        from torch_awp.attach import Attachment  # which imports this module

        self._refuse_while_open("attach")
        return Attachment(self, module, loss)

    @property
    def _attached(self) -> "Attachment | None":
        attachment = self._run.attachment()
        return attachment if attachment is not None and attachment.alive else None

    def _restore_attached(self) -> None:
        """Restore what a forward pass of an attached module has perturbed."""
        if (attachment := self._attached) is not None:
            attachment.restore()

    @contextmanager
    def _open(self, name: str) -> Iterator[Perturbation]:
        """The one way to perturbed weights and back."""
        self._refuse_while_open(name)
        run = self._run
        perturbation = Perturbation(self.constraint, self.epsilon, run.saved)
        try:
            run.inside, run.perturbation = name, weakref.ref(perturbation)
            # Of an attached module's earlier micro-batches, which belong to the same step.
            run.has_gradients = bool(run.has_gradients and self._attached)
            with perturbation:
                yield perturbation
        finally:
            run.inside = run.current_pass = None
            for saved in run.saved.values() if run.update else ():
                saved.backup = None  # one copy between steps is enough
        for param in perturbation.overwritten[:1]:
            self._warn_once(
                "overwritten",
                f"a parameter of shape {tuple(param.shape)} was written to while it was perturbed, "
                "which is undone: write before the loop or block, or after step()",
            )

    def step(self, closure: Closure | None = None, *args: Any, **kwargs: Any) -> Any:
        """Let the base step, with a closure on the gradients at perturbed weights.

        Args:
            closure: clears the gradients, computes the loss, calls `backward` and returns the loss.
                Without it the base steps on the gradients that are there, which a loop over
                :meth:`passes` or a :meth:`perturb` block has made.
            *args: further arguments of the base's `step`.
            **kwargs: further arguments of the base's `step`.

        Returns:
            The loss of the closure's first call, or what the base returns where there is none.

        Raises:
            RuntimeError: inside a block or loop, if the base never calls the closure, if the
                closure computes no gradient or adds to older ones on a step that perturbs, or if
                the base differentiates gradients that belong to perturbed weights.
        """
        self._restore_attached()
        self._refuse_while_open("step")
        run, due, losses = self._run, self._is_due(), []  # type: ignore[var-annotated]
        if closure is not None:
            # Through the base's own closure, so that optimizers which need one (LBFGS) work too.
            args = (partial(self._evaluate, closure, losses), *args)
        run.in_closure = closure is not None
        try:
            loss = self.base.step(*args, **kwargs)
        except RuntimeError as error:
            if "modified by an inplace operation" in str(error):
                raise RuntimeError(
                    f"{type(self.base).__name__}.step() differentiates gradients of weights that "
                    "have been restored: an optimizer of second order cannot be wrapped"
                ) from error
            raise
        finally:
            run.in_closure, run.before = False, {}
        if due and closure is not None:
            if not losses:
                raise RuntimeError(f"{type(self.base).__name__}.step() never called its closure")
            return losses[0]
        return loss

    @torch.enable_grad()
    def _evaluate(self, closure: Closure, first_losses: list[Any]) -> Any:
        """Call a closure for the base, so that it leaves the gradients to step on."""
        if self._attached:
            first_losses.append(closure())
            self._restore_attached()
            self._run.missed = self._what_was_missed()
            return first_losses[-1]
        due, earlier, losses = self._is_due(), self._run.has_gradients, []
        for _ in Passes(self):
            losses.append(closure())
            if due and not self._has_computed():
                if earlier:  # Lightning's manual optimization brings an empty closure to the
                    break  # step after the user's own loop
                raise RuntimeError(
                    "the closure computed no gradient: on a step that perturbs it must clear the "
                    "gradients, compute the loss, call backward() and return the loss"
                )
        first_losses.append(losses[0])
        return losses[-1]

    def _before_base_step(self) -> None:
        """Hook of the base, before it steps, whoever makes it."""
        self._restore_attached()
        self._refuse_while_open(f"{type(self.base).__name__}.step")
        self._run.is_probe = self._is_state_probe()
        # Before the base may clear the gradients.
        self._run.missed = None if self._run.in_closure else self._what_was_missed()

    def _after_base_step(self) -> None:
        """Hook of the base, after it has stepped."""
        run = self._run
        if run.missed is not None:
            self._warn_once("step", run.missed)
        run.has_gradients = None
        if (attachment := self._attached) is not None:
            attachment.missed = type(attachment).missed
        if not run.is_probe:
            run.steps = self._step_number() + 1
            for group in self.param_groups:
                group[STEP_KEY] = run.steps

    def _what_was_missed(self) -> str | None:
        """Why the gradients of a step that is due are not those of perturbed weights."""
        run, attached = self._run, self._attached
        if run.has_gradients or run.is_probe or not self._is_due():
            return None
        if self._would_move():
            missed = attached and f"the optimizer is attached to a module, but {attached.missed}"
            return f"step() on gradients of unperturbed weights: {missed or _UNPERTURBED}"
        if run.has_gradients is not None and all(param.grad is None for param in self._params()):
            return (
                "step() without a gradient: nothing is perturbed. Are the tensors of this "
                "optimizer trained elsewhere (by optimizers in backward hooks), or all frozen?"
            )
        return None

    # -- when and what ---------------------------------------------------------------------------

    @property
    def current_pass(self) -> Pass | None:
        """The pass that is running, `None` outside of a loop, block, closure or attached module."""
        return self._run.current_pass

    @property
    def gamma(self) -> float:
        """The gamma of groups that have none; the one in use is the group's `"perturb_gamma"`."""
        return self.default_gamma

    def _gammas(self) -> list[float]:
        gammas = [group.get(GAMMA_KEY, self.default_gamma) for group in self.param_groups]
        return [checked_real(f"param_groups[{i}]['{GAMMA_KEY}']", g) for i, g in enumerate(gammas)]

    def _is_due(self, ahead: int = 0) -> bool:
        """Whether this step perturbs, or one further ahead."""
        step = self._step_number() + ahead - self.start_step
        return step >= 0 and step % self.interval == 0 and any(self._gammas())

    def _step_number(self) -> int:
        """The number of successful steps so far; every group has it, since groups come and go."""
        counts = [int(group[STEP_KEY]) for group in self.param_groups if STEP_KEY in group]
        return max(counts, default=self._run.steps)

    def _is_state_probe(self) -> bool:
        """Whether this step only creates state, as torch.distributed.checkpoint does.

        It steps an optimizer without state on zero gradients with a zero learning rate.
        """
        if self.state or self._run.in_closure:
            return False
        lrs = [group.get("lr", 0) for group in self.param_groups]
        # Looking at one on an accelerator would wait.
        if any(isinstance(lr, Tensor) and lr.device.type != "cpu" for lr in lrs) or any(lrs):
            return False
        grads = [param.grad for param in self._params() if param.grad is not None]
        return bool(grads) and not any(sharding.any_nonzero(grad) for grad in grads)

    def _params(self) -> list[Tensor]:
        return [param for group in self.param_groups for param in group["params"]]

    def _selected(self) -> Selected:
        """Every trainable tensor that may move, once."""
        selected: dict[Tensor, Any] = {}
        attached = self._attached
        for group, gamma in zip(self.param_groups, self._gammas(), strict=True):
            if self.select is not None and "param_names" not in group:
                cls = type(self.base).__name__
                raise ValueError(
                    f"select={self.select!r} needs parameter names, which this {cls} does not "
                    f"have: build it with {cls}(model.named_parameters(), ...)"
                )
            names = group["param_names"] if self.select else repeat("", len(group["params"]))
            for param, name in zip(group["params"], names, strict=True):
                chosen = self.select(name, param) if self.select else param.ndim > 1
                inside = attached is None or attached.holds(param)
                if inside and chosen and gamma > 0 and param.requires_grad:
                    selected.setdefault(param, (param, gamma, group))
        return list(selected.values())

    def _inputs(self) -> list[Tensor] | None:
        """What the gradient of a pass that climbs is needed for."""
        inputs = [param for param, _, _ in self._selected()]
        # FSDP2 fills no gradient but in a whole backward pass.
        return None if any(sharding.is_sharded(param) for param in inputs) else inputs or None

    # -- what silence would hide -----------------------------------------------------------------

    @contextmanager
    def _watched(self, this: Pass, refuse_adding: bool = False) -> Iterator[None]:
        """A pass, of which we note whether it computes gradients, and refuse that it adds to older.

        Those belong to other weights (another batch at `w`, the ascent), so the sum would be
        neither the gradient at `w` nor that at `w + v`. Trainers that accumulate gradients do this,
        and loops that clear them only after the step. Watched on the first tensor with a gradient.
        """
        run, params = self._run, self._params()
        run.current_pass, run.cleared = this, False
        run.versions = [(param, _version(param.grad)) for param in params]
        watched = this.inputs or params if refuse_adding else []
        first = next((p for p in watched if p.requires_grad and p.grad is not None), None)
        added: list[bool] = []
        handles = [] if first is None else self._watch_adding(first, added)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            run.has_gradients = run.has_gradients or (not this.climbs and self._has_computed())
            run.current_pass, run.versions = None, []
        if any(added):
            raise RuntimeError(
                "a pass added to older gradients: call zero_grad() first in each pass, and go over "
                "all accumulated batches in each pass (a closure of a trainer that accumulates "
                "has the last one only). To add on purpose use perturb()"
            )

    def _watch_adding(self, param: Tensor, added: list[bool]) -> list[RemovableHandle]:
        """Append to `added` whether gradients of `param` are added to that which it has now."""
        older, found = _version(param.grad), list[bool]()

        def computed(_: Tensor) -> None:
            grad = param.grad
            as_it_was = grad is not None and not _is_new(grad, older) and not self._run.cleared
            # `grad.data.zero_()` leaves no trace but zeros, which only the host can see at once.
            found[:] = [as_it_was and (not on_host(grad) or bool(grad.any()))]  # type: ignore[arg-type, union-attr]

        def accumulated(_: Tensor) -> None:  # torch.autograd.grad computes and accumulates nothing
            added.extend(found)

        return [
            param.register_hook(computed),  # type: ignore[no-untyped-call]
            param.register_post_accumulate_grad_hook(accumulated),  # type: ignore[no-untyped-call]
        ]

    def _has_computed(self) -> bool:
        """Whether this pass has computed any gradient (or one was written by other means)."""
        # On an accelerator a CUDA graph may have, which leaves no trace.
        return any(
            param.grad is not None and (_is_new(param.grad, version) or not on_host(param.grad))
            for param, version in self._run.versions
        )

    def _refuse_while_open(self, what: str, *, by_hand: bool = False) -> None:
        run, perturbation = self._run, self._run.perturbation()
        if self._is_replaced:
            raise RuntimeError(f"{what}(): the base was wrapped again, use the newer wrapper")
        if by_hand and self._attached:
            raise RuntimeError(
                f"{what}() of an attached optimizer, whose module perturbs in its forward passes: "
                "call only backward() and step(), or call handle.remove() first"
            )
        inside = run.inside
        if inside is None and perturbation is not None and perturbation.active:
            inside = "a block or loop that the traceback of an exception keeps open"
        if inside is not None:
            raise RuntimeError(f"{what}() inside {inside}: leave it first")

    def _refuse_while_perturbed(self, what: str) -> None:
        """In the first pass of a loop the weights are at `w`, so a checkpoint is good there."""
        this = self._run.current_pass
        if this is None or this.perturbed or self._run.inside == BLOCK:
            self._refuse_while_open(what)

    def _warn_once(self, about: str, message: str) -> None:
        if about not in self._run.warned:
            self._run.warned.add(about)
            level, frame = 1, sys._getframe()
            # Code that exec runs may have None as its name.
            while frame.f_back and str(frame.f_globals.get("__name__")).split(".")[0] in _BETWEEN:
                level, frame = level + 1, frame.f_back
            warnings.warn(message, stacklevel=level)

    def _warn_if_in_vain(self, selected: Selected) -> None:
        """Say why nothing moves, or hardly anything."""
        for param, gamma, _ in selected:
            if param.dtype in _SMALLEST_GAMMA:
                smallest, step_size = _SMALLEST_GAMMA[param.dtype], self._step_size(gamma)
                if min(gamma, step_size) < smallest:
                    steps = f" in steps of {step_size:g}" if step_size < gamma else ""
                    self._warn_once(
                        "gamma",
                        f"gamma={gamma:g}{steps} is below {smallest:g}, half the relative spacing "
                        f"of {param.dtype}: most of it is lost to rounding. Use a larger one, or "
                        "float32 parameters",
                    )
        groups = zip(self.param_groups, () if selected else self._gammas(), strict=False)
        params = [param for group, gamma in groups if gamma > 0 for param in group["params"]]
        if any(param.requires_grad and param.numel() for param in params):
            flat = "all have one dimension (flat parameters?): choose some by select=..."
            reason = "select picks none: check the names it is given" if self.select else flat
            self._warn_once("select", f"no tensor is perturbed: {reason}")

    # -- being the base --------------------------------------------------------------------------

    def zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Call the base's `zero_grad`, with its arguments."""
        self._run.cleared = True
        self.base.zero_grad(*args, **kwargs)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Call the base's `add_param_group`; the group may have its own `"perturb_gamma"`."""
        self.base.add_param_group(param_group)
        self._fill_groups()

    def __getattr__(self, name: str) -> Any:
        # Private names stay private: torch.amp.GradScaler steps around who shows it the base's.
        if name.startswith("_") or "base" not in vars(self):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.base, name)

    def __setattr__(self, name: str, value: Any) -> None:
        own = name.startswith("_") or name in vars(self) or hasattr(type(self), name)
        if own or "base" not in vars(self) or not hasattr(self.base, name):
            super().__setattr__(name, value)
        else:
            setattr(self.base, name, value)

    def __repr__(self) -> str:
        gammas = list(dict.fromkeys(self._gammas()))
        own = {"gamma": gammas[0] if len(gammas) == 1 else gammas, **vars(self), "base": self.base}
        names = ("gamma", "constraint", "steps", "ascent", "base")
        shown = ", ".join(f"{name}={own[name]!r}" for name in names if name in own)
        return f"{type(self).__name__}({shown})"

    def __getstate__(self) -> dict[str, Any]:
        # Left out: hooks, as in every torch optimizer, and the `step` that a scheduler puts into
        # the instance, which would step the original of a copy.
        self._refuse_while_perturbed("copying or pickling")
        own = {k: v for k, v in vars(self).items() if not k.startswith("_") and k != "step"}
        own |= {"_run": self._run, ATTACHMENT: self._attached}
        return {**super().__getstate__(), **own}  # torch_xla takes the groups from here

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "base" not in state:  # the usual reset of an optimizer's state
            self.base.__setstate__(state)
            return
        of_base = ("defaults", "state", "param_groups")
        self.__dict__.update({key: v for key, v in state.items() if key not in of_base})
        attachment = self.__dict__.pop(ATTACHMENT)
        self._run = copy(self._run)  # a shallow copy is the base's newer wrapper
        self._connect()
        if attachment is not None:  # of the module that is copied with the optimizer, if one is
            attachment.adopt(self)

    def _connect(self) -> RunState | None:
        """Become the one wrapper of the base, with its dictionaries of hooks: each fires once.

        Returns:
            The state of the wrapper that the base had.
        """
        for optimizer in optimizers_of(self.base):
            hooks = {key: v for key, v in vars(optimizer).items() if key.endswith("_hooks")}
            if "_optimizer_step_pre_hooks" in hooks and hasattr(type(optimizer).step, "hooked"):
                break
        else:
            name = type(self.base).__name__
            raise TypeError(f"optimizer must call torch's step hooks, which {name} does not")
        self.__dict__.update(hooks)
        self._stepping = optimizer
        older, *handles = _hooked.get(optimizer, [lambda: None])
        for handle in handles:
            handle.remove()
        replaced: RunState | None = older()
        pre, post = map(weakref.WeakMethod, (self._before_base_step, self._after_base_step))
        _hooked[optimizer] = (
            weakref.ref(self._run),  # which a trainer's shallow copy of the wrapper shares
            optimizer.register_step_pre_hook(partial(_call, pre)),
            optimizer.register_step_post_hook(partial(_call, post)),
        )
        return replaced

    @property
    def _is_replaced(self) -> bool:
        """Whether a newer wrapper has the base, or the optimizer inside it that steps."""
        return _hooked[self._stepping][0]() is not self._run

    # -- state -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The base's state, with the few values of the wrapper in its parameter groups.

        Raises:
            RuntimeError: while weights are perturbed.
        """
        self._restore_attached()
        self._refuse_while_perturbed("state_dict")
        self._fill_groups()
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of a wrapper or of the plain base.

        After one of a plain base, gammas and generator are as before, and steps are counted from 0
        again. Parameter names are not loaded.
        """
        self._restore_attached()
        self._refuse_while_open("load_state_dict")
        before = [dict(group) for group in self.param_groups]
        self.base.load_state_dict(state_dict)
        for values in self.state.values():
            if isinstance(values, dict):
                values.pop(UPDATE_KEY, None)
        for group, old in zip(self.param_groups, before, strict=True):
            kept = {"param_names"} if GAMMA_KEY in group else {"param_names", GAMMA_KEY}
            group.update({key: old[key] for key in kept & old.keys()})
        self._run.steps = 0
        self._fill_groups()

    def _fill_groups(self) -> None:
        gamma = self.default_gamma
        own = {GAMMA_KEY: gamma, STEP_KEY: self._step_number(), DEFAULT_KEY: gamma}
        for group in self.param_groups:
            group.update(own | group)


# Of an optimizer that steps, the state of its newest wrapper and the handles of that one's hooks.
_hooked: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def attachments() -> Iterator["Attachment"]:
    """Those of all optimizers."""
    for run, *_ in list(_hooked.values()):
        attachment = run().attachment() if run() is not None else None
        if attachment is not None and attachment.alive:
            yield attachment


@torch.inference_mode(False)
@torch.no_grad()
def _call(method: Any, *_: Any) -> None:
    """Call a wrapper's method from a hook that does not keep the wrapper alive."""
    if (call := method()) is not None:
        call()


def optimizers_of(base: Optimizer) -> Iterator[Optimizer]:
    """The base and, where it is one around others (Accelerate's, Lookahead), those inside."""
    yield base
    for value in vars(base).values():
        if isinstance(value, Optimizer):
            yield from optimizers_of(value)


def _version(grad: Tensor | None) -> tuple[Any, int]:
    """What tells a gradient from a later one, without keeping it alive."""
    return (None, 0) if grad is None else (weakref.ref(grad), grad._version)


def _is_new(grad: Tensor, older: tuple[Any, int]) -> bool:
    return older[0] is None or older[0]() is not grad or older[1] != grad._version


def require(holds: bool, name: str, value: Any, expected: str) -> None:
    """Raise an error that names the argument and its value, unless it is as expected."""
    if not holds:
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def checked_real(name: str, value: Any, *, positive: bool = False) -> float:
    """Return a finite number that is at least (`positive`: above) zero, as a float."""
    number = float(value) if isinstance(value, Real) else math.nan
    if not (0 < number < math.inf or (number == 0 and not positive)):
        raise ValueError(
            f"{name} must be a finite number {'>' if positive else '>='} 0, got {value!r}"
        )
    return number


def checked_integer(name: str, value: Any, *, minimum: int) -> int:
    """Return an integer that is at least `minimum`."""
    valid = isinstance(value, Integral) and int(value) >= minimum
    require(valid, name, value, f"an integer >= {minimum}")
    return int(value)
