"""Perturb and restore from the hooks of a module, so that a training loop needs no change.

A hook before the forward pass runs the loop over the passes of the step as far as its last pass,
which is the caller's. Hooks on the gradients of the output queue a callback for the end of the
backward pass, which ends the loop, as torch's data parallel modules do it.
"""

from __future__ import annotations

import copy
import sys
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from traceback import walk_stack
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves

from torch_awp.optimizer import Gradients, Pass, WeightPerturbation, attachments
from torch_awp.running_stats import freeze_running_stats
from torch_awp.sharding import is_sharded

_gone: Any = weakref.ref(type("Gone", (), {})())
# Hooks are not to be compiled; torch offers this form, which does not import its compiler.
_eager: Any = torch._disable_dynamo  # type: ignore[attr-defined]
_queue = torch.autograd.Variable._execution_engine.queue_callback
_AGAIN = "several forward passes before one backward pass: v comes from the loss of the first only"
_CHECKPOINT = (
    "activation checkpointing in an attached module needs use_reentrant=False, and one backward() "
    "for each forward pass"
)
_FSDP2 = "FSDP2 gives AWP's climb no gradients: use a loop over passes(), or a mode of one pass"
_NO_TRAINING = "its forward passes were in evaluation mode (call train()), no_grad() or paused()"


@dataclass(eq=False)
class _Perturbed:
    """The time at `w + v`, from a forward pass until the end of its backward pass."""

    passes: Generator[Pass, Any, None]  # of this step, in the last one: to go on restores
    random: list[dict[Any, Tensor]]  # states of generators before and after the other passes
    thread: int = field(default_factory=threading.get_ident)
    call: ExitStack = field(default_factory=ExitStack)  # what ends with a call of the module
    graph: Any = _gone  # weakly the hook that only a graph holds, while its backward pass may come
    inner: int = 0  # calls that a running call of the module has made of it
    other_loss: bool = False  # the backward pass has not gone through the loss that was climbed


class Attachment:
    """What :meth:`WeightPerturbation.attach` returns, and the hooks that it has registered.

    Attributes:
        tensors: of the optimizer, that belong to the module.
        missed: why a step was not perturbed, if none was.
    """

    tensors: frozenset[Tensor] = frozenset()
    missed = "its forward was never called (only its parts were? compiled before attach()?)"
    _optimizer: Any = _gone  # which knows us by a weak reference, too: the module's hooks hold us
    _loss: Callable[..., Any] | None = None
    _handles: tuple[Any, ...] = ()
    _module: Any = None  # weakly; a copy has not seen its module before that is called
    _perturbed: _Perturbed | None = None
    _paused = 0
    _trains = _looked = False

    def __init__(self, optimizer: WeightPerturbation, module: Any, loss: Any) -> None:
        _refuse(module, loss)
        if optimizer._attached:
            raise RuntimeError("attach() of an attached optimizer: call handle.remove() first")
        self._loss, self._module = loss, weakref.ref(module)
        self._find_tensors(optimizer, module)
        if any(not other.tensors.isdisjoint(self.tensors) for other in attachments()):
            raise RuntimeError("attach(): another optimizer, also attached, perturbs these tensors")
        # Those of parts, too: whoever saves a model may have unwrapped it.
        kinds = ("register_state_dict_pre_hook", "register_load_state_dict_pre_hook")
        self._handles = (
            module.register_forward_pre_hook(self._before, prepend=True, with_kwargs=True),
            module.register_forward_hook(self._after, with_kwargs=True, always_call=True),
            *(getattr(part, kind)(self.restore) for part in module.modules() for kind in kinds),
        )
        self.adopt(optimizer)

    def adopt(self, optimizer: WeightPerturbation) -> None:
        """Belong to this optimizer from now on."""
        self._optimizer, optimizer._run.attachment = weakref.ref(optimizer), weakref.ref(self)

    def holds(self, param: Tensor) -> bool:
        """Whether a tensor of the optimizer belongs to the module; a copy has not looked yet."""
        return not self.tensors or param in self.tensors

    @property
    def alive(self) -> bool:
        """Whether the module exists: its parts may outlive it, with hooks of ours."""
        return self._module is None or self._module() is not None

    # -- the handle ------------------------------------------------------------------------------

    def remove(self) -> None:
        """Restore the weights, and never perturb again."""
        self.restore()
        for handle in self._handles:
            handle.remove()
        if (optimizer := self._optimizer()) is not None:
            optimizer._run.attachment = _gone
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
        perturbed, self._perturbed = self._perturbed, None
        if perturbed is not None:
            try:
                perturbed.call.close()
            finally:
                next(perturbed.passes, None)

    # -- hooks -----------------------------------------------------------------------------------

    @_eager  # type: ignore[untyped-decorator]
    def _before(self, module: Any, args: Any, kwargs: Any) -> None:
        """Before the module's own forward."""
        optimizer = self._optimizer()
        if optimizer is None or optimizer._is_replaced:  # a copy's, or it has another wrapper now
            return
        self._put_first(module)
        trains = module.training and torch.is_grad_enabled()
        due = trains and not self._paused and optimizer._is_due()
        if torch._C._current_graph_task_id() != -1:
            self._recompute(due and optimizer.current_pass is None)
        elif not self._is_within(optimizer.current_pass, module):
            self._begin(optimizer, module, due, trains, args, kwargs)

    def _put_first(self, module: Any) -> None:
        """Come before hooks that others have put first since, from the next call on."""
        hooks = module._forward_pre_hooks
        owners = {key: getattr(hook, "__self__", None) for key, hook in hooks.items()}
        mine = next(key for key, owner in owners.items() if owner is self)
        ahead = takewhile(lambda key: key != mine, owners)
        if not all(isinstance(owners[key], Attachment) for key in ahead):  # these keep their order
            hooks.move_to_end(mine, last=False)

    def _is_within(self, this: Pass | None, module: nn.Module) -> bool:
        """Whether a call is the climb's, or one that the module makes of itself."""
        perturbed = self._perturbed
        if perturbed is None:
            return this is not None and this.climbs
        if perturbed.thread != threading.get_ident():
            raise RuntimeError("an attached module is called in another thread than perturbed it")
        within = _calls_of(module) > 1
        perturbed.inner = perturbed.inner + 1 if within else 0  # an interrupt leaves others
        return within

    def _begin(
        self, optimizer: Any, module: Any, due: bool, trains: bool, args: Any, kwargs: Any
    ) -> None:
        if self._perturbed is not None:
            self._perturbed.call.close()  # an interrupt leaves it open
            if self._perturbed.graph() is None:  # given up, or its backward pass has failed
                self.restore()
        perturbed, self._trains = self._perturbed, trains
        if perturbed is None and due:
            self._perturb(optimizer, module, args, kwargs)
        elif perturbed is None and (not trains or self._paused):
            self.missed = _NO_TRAINING
        elif perturbed is not None and not trains:  # an evaluation, at `w`
            _reshard(module)
            perturbed.call.callback(_reshard, module)
            perturbed.call.enter_context(optimizer._run.perturbation().suspended())
        elif perturbed is not None and not self._paused and optimizer._ascent_steps:
            optimizer._warn_once("again", _AGAIN)
        if hasattr(type(module), "unshard"):  # FSDP2's hook may have come before
            module.unshard()

    def _recompute(self, due: bool) -> None:
        """Inside a backward pass: a checkpoint calls once more."""
        if self._perturbed is None and due:
            raise RuntimeError(_CHECKPOINT)
        if self._perturbed is not None and self._perturbed.random:
            # The checkpoint put back the random numbers from before our hook, which drew some.
            before, after = self._perturbed.random
            if all(map(torch.equal, _random_states().values(), before.values())):
                for source, state in after.items():
                    source.set_rng_state(state)

    @_eager  # type: ignore[untyped-decorator]
    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """After the module's forward, also where that has failed."""
        perturbed, optimizer = self._perturbed, self._optimizer()
        if perturbed is None or torch._C._current_graph_task_id() != -1:
            return
        if perturbed.inner:
            perturbed.inner -= 1
            return
        perturbed.call.close()
        tensors = _tensors_in(output)
        if not self._trains:
            for tensor in tensors:
                tensor.register_hook(partial(self._reached, None))
        elif not self._paused:
            hook = perturbed.graph() or partial(self._reached, perturbed)
            for tensor in tensors:
                tensor.register_hook(hook)
            if tensors:
                perturbed.graph = weakref.ref(hook)
            elif perturbed.graph() is None:  # an error, or an output without a gradient
                self.restore()
            loss: Any = _loss_in(output) if self._loss is None and optimizer._ascent_steps else None
            if any(loss is tensor for tensor in tensors):
                perturbed.other_loss = True
                loss.register_hook(lambda _: setattr(perturbed, "other_loss", False))

    def _reached(self, weights: _Perturbed | None, _: Tensor) -> None:
        """A backward pass has come to an output, computed at `w + v` or (`None`) at `w`."""
        if self._perturbed is not weights:
            raise RuntimeError(
                "backward() through an attached module at other weights than in its forward pass: "
                "either a second backward pass (add up the losses, or use a loop over passes()), "
                "or one through an evaluation while the weights are at w + v (call backward() of "
                "the training loss first)"
            )
        if weights is not None and weights.graph() is not None:
            weights.graph, self._optimizer()._run.has_gradients = _gone, True
            # Twice: after what others have queued for the end, as DDP and FSDP do.
            _queue(partial(_queue, partial(self._end, weights)))

    def _end(self, perturbed: _Perturbed) -> None:
        self.restore()  # first: a warning may be an error
        if perturbed.other_loss:
            self._optimizer()._warn_once(
                "loss",
                "v comes from the loss in what an attached module returned, but backward() did not "
                "go through it: the training has another loss. Give that one, attach(model, "
                "loss=lambda output, ...: ...)",
            )

    # -- from w to w + v -------------------------------------------------------------------------

    def _perturb(self, optimizer: WeightPerturbation, module: nn.Module, *call: Any) -> None:
        """Go through all passes but the last."""
        self.missed = "no backward pass went through its output"
        random = [_random_states()] if _saving_is_watched() else []
        name = f"a forward pass of an attached {type(module).__name__}"
        self._find_tensors(optimizer, module)
        passes = optimizer._passes(name)
        try:
            this = next(passes)
            while this.climbs:
                this = passes.send(self._climb(optimizer, module, this.index > 0, *call))
            if random:
                random.append(_random_states())
            self._perturbed = _Perturbed(passes, random)
            self._perturbed.call.enter_context(freeze_running_stats(module, this.index > 0))
        except BaseException:
            passes.close()
            raise

    def _climb(self, optimizer: Any, module: Any, again: bool, args: Any, kwargs: Any) -> Gradients:
        """The gradients of one more call's loss; no `.grad` changes, and nothing else remains."""
        tensors = [param for param, _, _ in optimizer._selected()]
        # DDP's first pass over a static graph counts the gradients that arrive: not these.
        forward = module.module if getattr(module, "static_graph", False) else module
        hooks = (Tensor.detach, Tensor.detach)  # a checkpoint around does not see what we save
        hidden = saved_tensors_hooks(*hooks) if _saving_is_watched() else nullcontext()
        with hidden, freeze_running_stats(module, again):
            output = forward(*args, **kwargs)
            loss = (self._loss or _loss_in)(output, *args, **kwargs)
            _check_loss(loss, output)
            del output
            if not loss.requires_grad or not tensors:
                return {}
            with torch.autocast(loss.device.type, enabled=False):
                found = torch.autograd.grad(loss, tensors, allow_unused=True)
        gradients = {p: g for p, g in zip(tensors, found, strict=True) if g is not None}
        if not self._looked or len(gradients) < len(tensors):
            self._look(optimizer, loss)
        if any(map(is_sharded, tensors)) and not any(map(is_sharded, gradients)):
            raise RuntimeError(_FSDP2)
        return gradients

    def _look(self, optimizer: WeightPerturbation, loss: Tensor) -> None:
        """Find in the graph of a loss what would make gradients wrong without a word."""
        self._looked, nodes = True, set[Any]()
        new: set[Any] = {loss.grad_fn}
        while new:
            nodes |= new
            new = {behind for node in new for behind, _ in node.next_functions} - nodes - {None}
        if any("CheckpointFunction" in node.name() for node in nodes):
            raise RuntimeError(_CHECKPOINT)
        half = any(t.dtype == torch.float16 for node in nodes for t in node._input_metadata)
        if half and self._loss is None:
            optimizer._warn_once(
                "float16",
                "small gradients become zero in float16: scale the loss as in training, "
                "attach(model, loss=lambda output, *_, **__: scaler.scale(output.loss))",
            )

    # -- whose, and copies -----------------------------------------------------------------------

    def _find_tensors(self, optimizer: WeightPerturbation, module: nn.Module) -> None:
        _reshard(module)
        found = frozenset(optimizer._params()).intersection(module.parameters())
        if len(found) < max(1, len(self.tensors)):
            what = f"{len(found)} tensors of {type(module).__name__} belong to the optimizer"
            raise RuntimeError(f"{what}: were parameters replaced since then, or by DataParallel?")
        self.tensors = found

    def __deepcopy__(self, memo: dict[int, Any]) -> Attachment:
        """Of a copied optimizer, if that is copied with the module; otherwise nobody's."""
        twin = memo[id(self)] = copy.copy(self)
        twin._loss = self._loss
        return twin

    def __getstate__(self) -> dict[str, Any]:
        if self._perturbed is not None:
            raise RuntimeError("copying or pickling an attached module while it is perturbed")
        return {}


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
        tensors = [value for value in output.values() if isinstance(value, Tensor)]
        loss = output.get("loss", sum(t for t in tensors if t.ndim == 0 and t.requires_grad))
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


def _saving_is_watched() -> bool:
    """Whether hooks see what is saved for a backward pass, as those of a checkpoint around do."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is None or top(False) is not None  # torch before 2.7 does not tell


def _random_states() -> dict[Any, Tensor]:
    """Of torch's generators, by the module that sets them."""
    sources = [torch, *([torch.get_device_module()] if torch.accelerator.is_available() else [])]
    return {source: source.get_rng_state() for source in sources}


def _tensors_in(output: Any) -> list[Any]:
    """The tensors with a graph in an output, also in objects, one level deep."""
    held = tree_leaves(output)
    held += tree_leaves([getattr(x, "__dict__", {}) for x in held if not isinstance(x, Tensor)])
    held += tree_leaves([dict(x) for x in held if isinstance(x, Mapping)])
    return [t for t in held if isinstance(t, Tensor) and t.grad_fn is not None]


def _reshard(module: Any) -> None:
    """Let FSDP2 give up weights that it has gathered: it would use them again."""
    parts: list[Any] = [part for part in module.modules() if hasattr(type(part), "reshard")]
    for part in parts:
        if part is module:  # in whose forward pass it would keep them
            part.set_reshard_after_forward(True, recurse=False)
        part.reshard()


def _calls_of(module: nn.Module) -> int:
    """How many calls of a module are running: looked up, since an interrupt ends any of them."""
    frames = (frame for frame, _ in walk_stack(sys._getframe()))
    calls = (frame for frame in frames if frame.f_code.co_name == "_call_impl")
    return sum(frame.f_locals.get("self") is module for frame in calls)
