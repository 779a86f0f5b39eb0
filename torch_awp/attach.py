"""Perturb and restore from the hooks of a module, so that a training loop needs no change.

A hook before the forward pass perturbs the weights. Hooks on the gradients of its output queue a
callback for the end of the backward pass, which restores, as torch's data parallel modules do it.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves

from torch_awp.optimizer import Pass
from torch_awp.running_stats import freeze_running_stats
from torch_awp.sharding import is_sharded

if TYPE_CHECKING:
    from torch_awp.optimizer import WeightPerturbation

_attachments: weakref.WeakSet[Attachment] = weakref.WeakSet()
_gone: Any = weakref.ref(type("Gone", (), {})())
# Hooks are not to be compiled; torch offers this form, which does not import its compiler.
_eager: Any = torch._disable_dynamo  # type: ignore[attr-defined]
_queue = torch.autograd.Variable._execution_engine.queue_callback
_AGAIN = "several forward passes before one backward pass: v comes from the loss of the first only"
_CHECKPOINT = (
    "activation checkpointing in an attached module needs use_reentrant=False, and one backward() "
    "for each forward pass"
)
_FSDP2 = (
    "FSDP2 gives AWP in an attached module no gradients: use a loop over passes(), or a mode of "
    "one pass"
)
_NEVER_CALLED = "its forward was never called (only its parts were? compiled before attach()?)"
_NO_GRADIENT = "an attached module returned no tensor with a gradient: nothing is perturbed"
_OTHER_WEIGHTS = (
    "backward() through an attached module at other weights than in its forward pass: either a "
    "second backward pass (add up the losses, or use a loop over passes()), or one through an "
    "evaluation while the weights are at w + v (call backward() of the training loss first)"
)
_OTHER_LOSS = (
    "v comes from the loss in what an attached module returned, but backward() did not go through "
    "it: the training has another loss. Give that one, attach(model, loss=lambda output, ...: ...)"
)
_UNSCALED = (
    "small gradients become zero in float16: scale the loss as in training, "
    "attach(model, loss=lambda output, *_, **__: scaler.scale(output.loss))"
)


@dataclass(eq=False)
class _PerturbedPass:
    """The time at `w + v` from a forward pass until the end of its backward pass."""

    stack: ExitStack = field(default_factory=ExitStack)  # leaving it restores
    perturbation: Any = None
    graphs: list[weakref.ref[Any]] = field(default_factory=list)  # hooks that only a graph holds
    reached: bool = False  # by a backward pass
    ended: bool = False
    other_loss: bool = False  # the backward pass has not gone through the loss that was climbed
    random: list[list[Tensor]] | None = None  # states of generators before and after moving

    def is_pending(self) -> bool:
        """Whether a backward pass may come; one that has come and not ended this has failed."""
        return not self.reached and any(graph() is not None for graph in self.graphs)


class Attachment:
    """What :meth:`WeightPerturbation.attach` returns, and the hooks that it has registered.

    Attributes:
        tensors: of the optimizer, that belong to the module.
        missed: why a step was not perturbed, if none was.
    """

    tensors: frozenset[Tensor] = frozenset()
    missed = _NEVER_CALLED
    _optimizer: Any = _gone  # weak references, to these two
    _module: Any = _gone
    _loss: Callable[..., Any] | None = None
    _handles: tuple[Any, ...] = ()
    _perturbed: Any = None  # a `_PerturbedPass`, from a forward pass until it is restored
    _thread: int | None = None  # that has perturbed
    _depth = _paused = 0  # calls of the module that have begun, and pauses
    _frame: FrameType | None = None  # of the first of these calls
    _call = ExitStack()  # what ends with it
    _finish: Callable[[Any], None] | None = None  # what to do with its output
    _climbing = _looked = False

    def __init__(self, optimizer: WeightPerturbation, module: Any, loss: Any) -> None:
        _refuse(module, loss)
        if optimizer._attached:
            raise RuntimeError(
                "attach() of an optimizer that is attached already: call handle.remove() first"
            )
        self._find_tensors(optimizer, module)
        for other in list(_attachments):
            if other.alive and not other.tensors.isdisjoint(self.tensors):
                if not other._optimizer()._is_replaced:
                    raise RuntimeError(
                        "attach(): another optimizer that is attached perturbs the same tensors"
                    )
                other.remove()
        # Those of parts, too: whoever saves a model may have unwrapped it.
        kinds = ("register_state_dict_pre_hook", "register_load_state_dict_pre_hook")
        self._handles = (
            module.register_forward_pre_hook(self._before, prepend=True, with_kwargs=True),
            module.register_forward_hook(self._after, with_kwargs=True, always_call=True),
            *(getattr(part, kind)(self.restore) for part in module.modules() for kind in kinds),
        )
        self._loss, self._module = loss, weakref.ref(module)
        self.adopt(optimizer)

    def adopt(self, optimizer: WeightPerturbation) -> None:
        """Belong to this optimizer from now on."""
        self._optimizer, optimizer._run.attachment = weakref.ref(optimizer), self
        _attachments.add(self)

    @property
    def alive(self) -> bool:
        """Whether the module and its optimizer exist and belong together."""
        return self._optimizer() is not None and self._module() is not None

    # -- the handle ------------------------------------------------------------------------------

    def remove(self) -> None:
        """Restore the weights, and never perturb again."""
        self.restore()
        for handle in self._handles:
            handle.remove()
        if (optimizer := self._optimizer()) is not None:
            optimizer._run.attachment = None
        self._optimizer = _gone

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context in which forward passes perturb nothing.

        With gradients, between a perturbed forward pass and its backward pass, they run at
        `w + v`; otherwise at `w`.
        """
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def restore(self, *_: Any) -> None:
        """Restore the weights if they are perturbed; a pending backward pass becomes an error."""
        perturbed, call = self._perturbed, self._call
        self._perturbed = self._frame = self._finish = self._thread = None
        self._depth, self._call = 0, ExitStack()
        try:
            call.close()
        finally:
            if perturbed is not None:
                perturbed.ended = True
                perturbed.stack.close()

    # -- hooks -----------------------------------------------------------------------------------

    @_eager  # type: ignore[untyped-decorator]
    def _before(self, module: Any, args: Any, kwargs: Any) -> None:
        """Before the module's own forward, as the first of its hooks."""
        optimizer = self._optimizer()
        if optimizer is None:  # a copy's
            return
        trains = module.training and torch.is_grad_enabled()
        if torch._C._current_graph_task_id() != -1:
            self._recompute(optimizer, trains)
            return
        self._refuse_other_threads(module)
        if self._climbing:
            return
        if self._depth and any(frame is self._frame for frame in _frames()):  # it calls itself
            self._depth += 1
            return
        self._begin_call(module)
        late = self._put_first(module)
        if self._perturbed is not None:
            self._call_again(optimizer, module, trains)
        elif not trains or self._paused:
            training = "without gradients (torch.no_grad(), handle.paused())"
            mode = training if module.training else "in evaluation mode (call model.train())"
            self.missed = f"its forward passes were {mode}"
        elif optimizer._is_due():
            gathered = late and hasattr(module, "unshard")  # by FSDP2, before the weights move
            if gathered:
                module.set_reshard_after_forward(True, recurse=False)
            self._perturb(optimizer, module, args, kwargs)
            if gathered:
                module.unshard()

    def _refuse_other_threads(self, module: nn.Module) -> None:
        replica = getattr(module, "_is_replica", False)
        if replica or self._thread not in (None, threading.get_ident()):
            kind = (
                "by nn.DataParallel: use DDP"
                if replica
                else "in another thread than it was perturbed"
            )
            raise RuntimeError(f"an attached module is called {kind}")

    def _begin_call(self, module: nn.Module) -> None:
        self._call.close()  # an interrupt may have left it open
        if self._perturbed is not None and not self._perturbed.is_pending():
            self.restore()
        self._depth, self._call, self._finish = 1, ExitStack(), None
        calling = (f for f in _frames() if f.f_code.co_filename == nn.modules.module.__file__)
        self._frame = next(calling, None)
        if self._module() is None:  # of a copied pair
            self._module = weakref.ref(module)
            self._find_tensors(self._optimizer(), module)

    def _put_first(self, module: nn.Module) -> bool:
        """Come before the hooks of others; whether one came before this.

        Attachments keep their order, so that the first to enter is the last to leave.
        """
        hooks: Any = module._forward_pre_hooks
        owners = {key: getattr(hook, "__self__", None) for key, hook in hooks.items()}
        mine = next(key for key, owner in owners.items() if owner is self)
        others = {key for key, owner in owners.items() if not isinstance(owner, Attachment)}
        first = next(key for key in owners if key == mine or key in others)
        if first != mine:
            hooks.move_to_end(mine, last=False)
        return bool(first != mine)

    def _call_again(self, optimizer: WeightPerturbation, module: nn.Module, trains: bool) -> None:
        """A call while the backward pass of an earlier one is pending."""
        perturbed = self._perturbed
        if not trains:  # an evaluation, at `w`
            for enter in (partial(_reshard, optimizer, module), perturbed.perturbation.suspended):
                self._call.enter_context(enter())
            self._finish = partial(self._watch, perturbed, True)
        elif not self._paused:
            self._finish = partial(self._watch, perturbed, False)
            if optimizer._ascent_steps:
                optimizer._warn_once("again", _AGAIN)

    @_eager  # type: ignore[untyped-decorator]
    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """After the module's forward, also where that has failed."""
        idle = self._climbing or not self._depth or torch._C._current_graph_task_id() != -1
        if idle or self._optimizer() is None:
            return
        self._depth -= 1
        if self._depth == 0:
            finish, self._finish, self._frame = self._finish, None, None
            self._call.close()
            if finish is not None:
                finish(output)

    def _recompute(self, optimizer: WeightPerturbation, trains: bool) -> None:
        """Inside a backward pass: a checkpoint calls once more."""
        if self._perturbed is None:
            if trains and not self._paused and optimizer._is_due():
                raise RuntimeError(_CHECKPOINT)
        elif self._perturbed.random is not None:
            # The checkpoint put back the random numbers from before our hook, which drew some.
            before, after = self._perturbed.random
            if all(map(torch.equal, _random_states(), before)):
                for source, state in zip(_random_sources(), after, strict=True):
                    source.set_rng_state(state)

    # -- from w to w + v -------------------------------------------------------------------------

    def _perturb(self, optimizer: WeightPerturbation, module: nn.Module, *call: Any) -> None:
        perturbed = self._perturbed = _PerturbedPass()
        self._thread = threading.get_ident()
        self.missed = "no backward pass went through its output"
        before = _random_states() if _saving_is_watched() else None
        try:
            self._find_tensors(optimizer, module)
            name = f"a forward pass of an attached {type(module).__name__}"
            perturbation = perturbed.perturbation = perturbed.stack.enter_context(
                optimizer._open(name)
            )
            climbs = optimizer._ascent_steps
            for index in range(climbs):
                this = Pass(index, True, perturbation.active, optimizer._inputs())
                with optimizer._watched(this), freeze_running_stats(module, index > 0):
                    gradients = self._climb(optimizer, module, *call)
                optimizer._ascend(perturbation, gradients)
            if not climbs:
                optimizer._ascend(perturbation)
            this = Pass(climbs, False, perturbation.active)
            perturbed.stack.enter_context(optimizer._watched(this))
            self._call.enter_context(freeze_running_stats(module, climbs > 0))
            perturbed.random = None if before is None else [before, _random_states()]
        except BaseException:
            self.restore()
            raise
        self._finish = partial(self._watch, perturbed, False)

    def _climb(self, optimizer: WeightPerturbation, module: Any, args: Any, kwargs: Any) -> Any:
        """The gradients of one more call's loss; no `.grad` changes, and nothing else remains."""
        tensors = [param for param, _, _ in optimizer._selected()]
        # DDP's first pass over a static graph counts the gradients that arrive: not these.
        forward = module.module if getattr(module, "static_graph", False) else module
        self._climbing = True
        hooks = (Tensor.detach, Tensor.detach)  # a checkpoint around does not see what we save
        try:
            with saved_tensors_hooks(*hooks) if _saving_is_watched() else nullcontext():
                output = forward(*args, **kwargs)
                loss = (self._loss or _loss_in)(output, *args, **kwargs)
                _check_loss(loss, output)
                del output
                if not loss.requires_grad or not tensors:
                    return {}
                with torch.autocast(loss.device.type, enabled=False):
                    found = torch.autograd.grad(loss, tensors, allow_unused=True)
                if not self._looked or any(gradient is None for gradient in found):
                    self._look(optimizer, _graph_of(loss))
        finally:
            self._climbing = False
        gradients = {p: g for p, g in zip(tensors, found, strict=True) if g is not None}
        sharded = [param for param in tensors if is_sharded(param)]
        if sharded and gradients.keys().isdisjoint(sharded):
            raise RuntimeError(_FSDP2)
        return gradients

    def _look(self, optimizer: WeightPerturbation, graph: list[Any]) -> None:
        self._looked = True
        if any("CheckpointFunction" in node.name() for node in graph):
            raise RuntimeError(
                "AWP gets no gradients from reentrant checkpoints: set use_reentrant=False"
            )
        half = any(t.dtype == torch.float16 for node in graph for t in node._input_metadata)
        if half and self._loss is None:
            optimizer._warn_once("float16", _UNSCALED)

    # -- from w + v to w -------------------------------------------------------------------------

    def _watch(self, perturbed: _PerturbedPass, evaluated: bool, output: Any) -> None:
        """Notice the backward pass through an output."""
        run = self._optimizer()._run

        def reached(_: Tensor) -> None:
            if perturbed.ended != evaluated:
                raise RuntimeError(_OTHER_WEIGHTS)
            if not perturbed.reached and not evaluated:
                perturbed.reached = run.has_gradients = True
                # Twice: after what others have queued for the end, as DDP and FSDP do.
                _queue(partial(_queue, partial(self._end, perturbed)))

        tensors = _tensors_in(output)
        for tensor in tensors:
            tensor.register_hook(reached)  # type: ignore[no-untyped-call]
        if evaluated:
            return
        if self._loss is None and self._optimizer()._ascent_steps:
            loss = _loss_in(output)
            if any(loss is tensor for tensor in tensors):
                perturbed.other_loss = True
                loss.register_hook(lambda _: setattr(perturbed, "other_loss", False))
        perturbed.graphs.append(weakref.ref(reached))
        del reached
        if not perturbed.is_pending():
            self.restore()
            if sys.exc_info()[0] is None and not run.has_gradients:
                self._optimizer()._warn_once("output", _NO_GRADIENT)

    def _end(self, perturbed: _PerturbedPass) -> None:
        if not perturbed.ended:
            if perturbed.other_loss:
                self._optimizer()._warn_once("loss", _OTHER_LOSS)
            self.restore()

    # -- whose, and copies -----------------------------------------------------------------------

    def _find_tensors(self, optimizer: WeightPerturbation, module: nn.Module) -> None:
        with _reshard(optimizer, module):
            pass
        found = frozenset(optimizer._params()).intersection(module.parameters())
        if len(found) < max(1, len(self.tensors)):
            what = f"{len(found)} tensors of {type(module).__name__} belong to the optimizer"
            raise RuntimeError(f"{what}: were parameters replaced since it was built or attached?")
        self.tensors = found

    def __deepcopy__(self, memo: dict[int, Any]) -> Attachment:
        """Of a copied optimizer, if that is copied with the module; otherwise nobody's."""
        new, arguments = self.__reduce__()
        twin: Attachment = new(*arguments)
        twin._loss, memo[id(self)] = self._loss, twin
        return twin

    def __reduce__(self) -> Any:
        if self._perturbed is not None:
            raise RuntimeError("copying or pickling an attached module while it is perturbed")
        return Attachment.__new__, (Attachment,)


def _refuse(module: Any, loss: Any) -> None:
    if not isinstance(module, nn.Module) or not (loss is None or callable(loss)):
        raise TypeError(f"attach() takes an nn.Module and a callable, got {module!r}, {loss!r}")
    packages = {cls.__module__.split(".")[0] for cls in type(module).__mro__}
    of_deepspeed = any(hasattr(param, "ds_id") for param in module.parameters())
    if isinstance(module, nn.DataParallel) or "deepspeed" in packages or of_deepspeed:
        raise ValueError("module must not be nn.DataParallel's or DeepSpeed's: use DDP or FSDP2")


def _loss_in(output: Any, *_: Any, **__: Any) -> Any:
    """The loss in what a module returned."""
    loss = output if isinstance(output, Tensor) else getattr(output, "loss", None)
    if loss is None and isinstance(output, Mapping):
        values = [value for value in output.values() if isinstance(value, Tensor)]
        scalars = [value for value in values if value.ndim == 0 and value.requires_grad]
        loss = output["loss"] if "loss" in output else sum(scalars) if scalars else None
    elif loss is None and isinstance(output, tuple) and output:
        loss = output[0]
    return loss


def _check_loss(loss: Any, output: Any) -> None:
    if not isinstance(loss, Tensor) or loss.ndim > 0:
        raise RuntimeError(
            f"no scalar loss in the {type(output).__name__} that an attached module returned: "
            "call attach(module, loss=lambda output, *_: loss_fn(output, y)), attach a module that "
            'ends in its loss, or use a mode of one pass (ascent="update", '
            "RandomWeightPerturbation)"
        )


def _graph_of(loss: Tensor) -> list[Any]:
    nodes: list[Any] = [loss.grad_fn]
    seen: set[Any] = {None}
    for node in nodes:  # to which we append
        new = {following for following, _ in node.next_functions} - seen
        seen |= new
        nodes += new
    return nodes


def _saving_is_watched() -> bool:
    """Whether hooks see what is saved for a backward pass, as those of a checkpoint around do."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is None or top(False) is not None  # torch before 2.7 does not tell


def _random_sources() -> list[Any]:
    return [torch, *([torch.get_device_module()] if torch.accelerator.is_available() else [])]


def _random_states() -> list[Tensor]:
    return [source.get_rng_state() for source in _random_sources()]


def _tensors_in(output: Any) -> list[Tensor]:
    """The tensors with a graph in an output, also in objects, one level deep."""
    held: list[Any] = []
    for leaf in tree_leaves(output):
        inside = [
            list(leaf.values()) if isinstance(leaf, Mapping) else [],
            getattr(leaf, "__dict__", {}),
        ]
        held += [leaf] if isinstance(leaf, Tensor) else tree_leaves(inside)
    return [t for t in held if isinstance(t, Tensor) and t.grad_fn is not None]


@contextmanager
def _reshard(optimizer: WeightPerturbation, module: nn.Module) -> Iterator[None]:
    """FSDP2 uses weights again that it has gathered, unless it gives them up before and after."""
    sharded = any(is_sharded(param) for param in optimizer._params())
    parts: list[Any] = [part for part in module.modules() if sharded and hasattr(part, "reshard")]
    for part in parts:
        part.reshard()
    yield
    for part in parts:
        part.reshard()


def _frames() -> Iterator[FrameType]:
    """The calls that are running in this thread."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back
