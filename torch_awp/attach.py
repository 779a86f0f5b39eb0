"""A loop that knows nothing of perturbation trains perturbed: hooks of a module do what it lacks.

A forward pass in training perturbs before it begins. Hooks on what it returns notice the backward
pass, and a callback at the end of that restores, as torch's own data parallel modules do it.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
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
    from torch_awp.perturbation import Perturbation

Loss = Callable[..., Tensor]

_attachments: weakref.WeakSet[Attachment] = weakref.WeakSet()
# The hooks are not to be compiled; torch offers this form, which does not import its compiler.
_eager: Any = torch._disable_dynamo  # type: ignore[attr-defined]


class _Stay:
    """The time at `w + v` from a forward pass until the end of its backward pass."""

    def __init__(self) -> None:
        self.stack = ExitStack()  # leaving it restores
        self.perturbation: Perturbation | None = None
        self.graphs: list[weakref.ref[Any]] = []  # hooks that only the graph of an output holds
        self.reached = False  # by a backward pass
        self.ended = False
        self.random: tuple[list[Tensor], list[Tensor]] | None = None  # before and after moving

    def is_pending(self) -> bool:
        """Whether a backward pass may still come; one that has come and not ended us has failed."""
        return not self.reached and any(graph() is not None for graph in self.graphs)


class Attachment:
    """What :meth:`WeightPerturbation.attach` returns, and the hooks that it has registered."""

    def __init__(self, optimizer: WeightPerturbation, module: nn.Module, loss: Loss | None) -> None:
        self._reset(loss)
        _refuse(module, loss)
        if optimizer._is_attached():
            raise RuntimeError("attach() of an optimizer that is attached: handle.remove() first")
        self._find_tensors(optimizer, module)
        for other in list(_attachments):
            if other._holds(self.tensors):
                raise RuntimeError(
                    "attach(): another optimizer is attached that moves the same tensors: a module "
                    "is perturbed once, handle.remove() that first"
                )
        self._handles: list[Any] = [
            module.register_forward_pre_hook(self._before, prepend=True, with_kwargs=True),
            module.register_forward_hook(self._after, with_kwargs=True, always_call=True),
        ]
        for part in module.modules():  # whoever wraps or unwraps the module for a checkpoint
            self._handles.append(part.register_state_dict_pre_hook(self._at_state))
            self._handles.append(part.register_load_state_dict_pre_hook(self._at_state))
        self._first = self._handles[0].id
        self._module = weakref.ref(module)
        self.adopt(optimizer)

    def _reset(self, loss: Loss | None) -> None:
        self._loss = loss
        self._optimizer: Callable[[], WeightPerturbation | None] = lambda: None
        self._module: Callable[[], nn.Module | None] = lambda: None
        self.tensors: set[Tensor] = set()  # of the optimizer, that belong to the module
        self._handles = []
        self._first: int | None = None
        self._stay: _Stay | None = None
        self._thread: int | None = None  # in which the weights went away
        self._depth = 0  # of calls of the module that have begun, ...
        self._frame: FrameType | None = None  # ... the first here
        self._call = ExitStack()  # what ends with it
        self._finish: Callable[[Any], None] | None = None  # what to do with its output
        self._climbing = False
        self._looked = False  # at the precision of its graph
        self._paused = 0
        self.begin_step()

    def adopt(self, optimizer: WeightPerturbation) -> None:
        """Belong to this optimizer from now on."""
        self._optimizer = weakref.ref(optimizer)
        optimizer._run.attachment = self
        _attachments.add(self)

    @property
    def alive(self) -> bool:
        """Whether the module and its optimizer exist and belong together."""
        return self._optimizer() is not None and self._module() is not None

    def begin_step(self) -> None:
        """Forget why the last step was not perturbed."""
        self.missed = (
            "its forward was never called (through a part of it, through code compiled before "
            "attach(), or not at all)"
        )

    def _holds(self, tensors: set[Tensor]) -> bool:
        """Whether a tensor of these moves here, by an optimizer that is in use."""
        optimizer = self._optimizer()
        if optimizer is None or not self.alive or self.tensors.isdisjoint(tensors):
            return False
        if optimizer._run.replaced:
            self.remove()
            return False
        return True

    # -- the handle ------------------------------------------------------------------------------

    def remove(self) -> None:
        """Restore the weights, and never perturb again."""
        self.restore()
        for handle in self._handles:
            handle.remove()
        optimizer = self._optimizer()
        if optimizer is not None and optimizer._run.attachment is self:
            optimizer._run.attachment = None
        self._reset(None)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context in which forward passes perturb nothing.

        With gradients, between a perturbed forward pass and its backward pass, they stay where the
        weights are; otherwise they see `w`.
        """
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def restore(self) -> None:
        """Bring the weights home if they are away; a pending backward pass becomes an error."""
        stay, self._stay = self._stay, None
        call, self._call = self._call, ExitStack()
        self._depth, self._frame, self._finish, self._thread = 0, None, None, None
        try:
            call.close()
        finally:
            if stay is not None:
                stay.ended = True
                stay.stack.close()

    # -- hooks -----------------------------------------------------------------------------------

    @_eager
    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Before the module's own forward, as the first of its hooks."""
        optimizer = self._optimizer()
        if optimizer is None:  # a copy of the module
            return
        if torch._C._current_graph_task_id() != -1:  # activations are computed once more
            self._recompute(optimizer, module)
            return
        if getattr(module, "_is_replica", False):
            raise RuntimeError("an attached module inside nn.DataParallel: use DDP")
        if self._thread not in (None, threading.get_ident()):
            raise RuntimeError(
                "the attached module is called in a thread while another has its weights at w + v"
            )
        if self._climbing:
            return
        if self._depth and _is_running(self._frame):  # it calls itself
            self._depth += 1
            return
        if self._stay is not None and not self._stay.is_pending():
            self.restore()
        self._call.close()  # what an interrupt left
        self._module = weakref.ref(module)
        self._depth, self._frame, self._finish = 1, _calling_frame(), None
        hooks = module._forward_pre_hooks
        late = self._first in hooks and next(iter(hooks)) != self._first
        if late:
            hooks.move_to_end(self._first, last=False)
        trains = module.training and torch.is_grad_enabled()
        if self._stay is not None:
            self._call_again(optimizer, self._stay, trains)
        elif trains and not self._paused:
            if optimizer._is_due():
                with _ungathered(module) if late else nullcontext():
                    self._perturb(optimizer, module, args, kwargs)
        elif not module.training:
            self.missed = "its forward passes were in evaluation mode (model.eval())"
        else:
            self.missed = "its forward passes were paused, or without gradients"

    @_eager
    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """After the module's forward, also where that has failed."""
        if self._optimizer() is None or self._climbing or not self._depth:
            return
        if torch._C._current_graph_task_id() != -1:
            return
        self._depth -= 1
        if self._depth:
            return
        self._frame = None
        finish, self._finish = self._finish, None
        self._call.close()
        if finish is not None:
            finish(output)

    def _at_state(self, *_: Any) -> None:
        """Before the module's state is read or written."""
        self.restore()

    # -- from w to w + v -------------------------------------------------------------------------

    def _perturb(self, optimizer: WeightPerturbation, module: nn.Module, *inputs: Any) -> None:
        stay = self._stay = _Stay()
        self._thread = threading.get_ident()
        self.missed = "no backward pass went through what its forward returned"
        try:
            self._find_tensors(optimizer, module)
            before = _random_state() if _is_checkpointed() else None
            stay.stack.callback(_keep_gradients(optimizer))
            name = f"a forward pass of an attached {type(module).__name__}"
            perturbation = stay.stack.enter_context(optimizer._open(name))
            stay.perturbation = perturbation
            ascents = optimizer._ascent_steps
            for index in range(ascents):
                self._climb(optimizer, perturbation, index, module, *inputs)
            if ascents == 0:
                optimizer._ascend(perturbation)
            this = Pass(ascents, False, perturbation.active)
            stay.stack.enter_context(optimizer._watched(this, False))
            self._call.enter_context(freeze_running_stats(module, ascents > 0))
            if before is not None:
                stay.random = before, _random_state()
        except BaseException:
            self.restore()
            raise
        self._finish = partial(self._watch, stay)

    def _climb(
        self,
        optimizer: WeightPerturbation,
        perturbation: Perturbation,
        index: int,
        module: nn.Module,
        args: Any,
        kwargs: Any,
    ) -> None:
        tensors = [param for param, _, _ in optimizer._selected()]
        this = Pass(index, True, perturbation.active, optimizer._inputs())
        gradients: dict[Tensor, Tensor] = {}
        self._climbing = True
        try:
            with optimizer._watched(this, False), freeze_running_stats(module, index > 0):
                if tensors:
                    gradients = self._gradients(optimizer, tensors, module, args, kwargs)
        finally:
            self._climbing = False
        optimizer._ascend(perturbation, gradients)

    def _gradients(
        self,
        optimizer: WeightPerturbation,
        tensors: list[Tensor],
        module: nn.Module,
        args: Any,
        kwargs: Any,
    ) -> dict[Tensor, Tensor]:
        """Those of one more call's loss; no `.grad` changes, and nothing of the call remains."""
        # DDP's first pass over a static graph counts what arrives: not this.
        forward = module.module if getattr(module, "static_graph", False) else module
        with _own_graph():
            output = forward(*args, **kwargs)
            loss = _loss_of(output) if self._loss is None else self._loss(output, *args, **kwargs)
            del output
            if not isinstance(loss, Tensor) or loss.ndim > 0:
                raise RuntimeError(f"attach(loss=...) must give a scalar tensor, got {loss!r}")
            if self._loss is None and not self._looked:
                self._looked = True
                if _is_half_way(loss):
                    optimizer._warn_once(
                        "float16",
                        "small gradients of the climb's loss vanish in float16: scale it as the "
                        "training does, attach(model, loss=lambda output, *_, **__: "
                        "scaler.scale(output.loss))",
                    )
            with torch.autocast(loss.device.type, enabled=False):
                found = _differentiate(loss, tensors)
        gradients = {p: g for p, g in zip(tensors, found, strict=True) if g is not None}
        sharded = [param for param in tensors if is_sharded(param)]
        if sharded and not any(param in gradients for param in sharded):
            raise RuntimeError(
                "attach() of a climb to FSDP2: its gradients do not arrive at torch.autograd.grad. "
                'Use a loop over passes(), ascent="update" or RandomWeightPerturbation'
            )
        if not gradients:
            optimizer._warn_once(
                "gradients",
                "no tensor is perturbed: the loss of the attached module depends on none that moves",
            )
        return gradients

    # -- from w + v to w -------------------------------------------------------------------------

    def _watch(self, stay: _Stay, output: Any) -> None:
        """Notice the backward pass through an output."""

        def reached(_: Tensor) -> None:
            if stay.ended:
                raise RuntimeError(
                    "a second backward pass through an attached module, whose weights are restored "
                    "after the first: add up what one forward pass leads to, and call backward() "
                    "once, or use a loop over passes()"
                )
            if not stay.reached:
                stay.reached = True
                # Twice: after what others have queued for the end, as DDP and FSDP do.
                _at_end_of_backward(partial(_at_end_of_backward, partial(self._end, stay)))

        tensors = _with_graph(output)
        for tensor in tensors:
            tensor.register_hook(reached)  # type: ignore[no-untyped-call]
        stay.graphs.append(weakref.ref(reached))
        del reached
        if stay.is_pending():
            return
        self.restore()
        optimizer = self._optimizer()
        if optimizer is not None and not optimizer._run.has_gradients and sys.exc_info()[0] is None:
            optimizer._warn_once(
                "output",
                "an attached module returned no tensor that a gradient can come through (none needs "
                "one, or it is inside an object that is not searched): nothing is perturbed",
            )

    def _end(self, stay: _Stay) -> None:
        if self._stay is stay:
            self.restore()

    def _call_again(self, optimizer: WeightPerturbation, stay: _Stay, trains: bool) -> None:
        """A forward pass while a backward pass is pending."""
        if not trains:
            self._call.enter_context(_suspended(optimizer, stay))
            self._finish = partial(_refuse_backward, stay)
        elif not self._paused:
            self._finish = partial(self._watch, stay)
            if optimizer._ascent_steps:
                optimizer._warn_once(
                    "again",
                    "several forward passes of an attached module before one backward pass: the "
                    "climb followed the loss of the first. A module that makes all of them and "
                    "returns their loss climbs along the whole",
                )

    # -- what cannot be right --------------------------------------------------------------------

    def _find_tensors(self, optimizer: WeightPerturbation, module: nn.Module) -> None:
        if any(is_sharded(param) for param in optimizer._params()):
            for part in module.modules():  # weights gathered for an evaluation would be used again
                if hasattr(part, "reshard"):
                    part.reshard()
        found = set(optimizer._params()).intersection(module.parameters())
        if len(found) < max(1, len(self.tensors)):
            raise RuntimeError(
                f"{len(found)} tensors of {type(module).__name__} belong to its attached optimizer,"
                f" {len(self.tensors) or 'at least 1'} expected: were parameters replaced since the"
                " optimizer was built or attached? Build it from the module's, and attach last"
            )
        self.tensors = found

    def _recompute(self, optimizer: WeightPerturbation, module: nn.Module) -> None:
        """In a backward pass a checkpoint calls once more."""
        stay = self._stay
        if stay is not None and stay.random is not None:
            # It has put back the random numbers from before our hook, which drew some.
            before, after = stay.random
            if all(map(torch.equal, _random_state(), before)):
                _set_random_state(after)
        trains = module.training and torch.is_grad_enabled() and not self._paused
        if trains and self._stay is None and optimizer._is_due():
            raise RuntimeError(
                "an attached module is called inside a backward pass on weights that are not "
                "perturbed: checkpoint it with use_reentrant=False, and call backward() once"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Attachment:
        """Of a copied optimizer, if that is copied with the module; otherwise nobody's."""
        self.__reduce__()
        twin = memo[id(self)] = _nobodys()
        twin._loss = self._loss
        return twin

    def __reduce__(self) -> Any:
        if self._stay is not None:
            raise RuntimeError(
                "copying or pickling an attached module while its weights are perturbed: do it "
                "after the backward pass"
            )
        return _nobodys, ()


def _nobodys() -> Attachment:
    attachment = Attachment.__new__(Attachment)
    attachment._reset(None)
    return attachment


def _refuse(module: Any, loss: Any) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if loss is not None and not callable(loss):
        raise TypeError(f"loss must be None or a callable (output, *args, **kwargs), got {loss!r}")
    if isinstance(module, nn.DataParallel):
        raise ValueError("module must not be an nn.DataParallel, which copies weights: use DDP")
    deepspeed = any(cls.__module__.split(".")[0] == "deepspeed" for cls in type(module).__mro__)
    if deepspeed or any(hasattr(param, "ds_id") for param in module.parameters()):
        raise ValueError("module must not be DeepSpeed's, which steps on weights of its own")


def _loss_of(output: Any) -> Any:
    """The loss in what a module returned."""
    if isinstance(output, Tensor) and output.ndim == 0:
        return output
    loss = getattr(output, "loss", None)
    if loss is None and isinstance(output, Mapping):
        values = [v for v in output.values() if isinstance(v, Tensor)]
        scalars = [v for v in values if v.ndim == 0 and v.requires_grad]
        loss = output["loss"] if "loss" in output else sum(scalars) if scalars else None
    elif loss is None and isinstance(output, tuple) and output:
        loss = output[0]
    if isinstance(loss, Tensor) and loss.ndim == 0:
        return loss
    raise RuntimeError(
        f"the climb finds no loss in the {type(output).__name__} that the attached module returned:"
        " give attach(module, loss=lambda output, *args, **kwargs: ...), attach a module that ends "
        'in its loss, or take a mode of one pass (ascent="update", RandomWeightPerturbation)'
    )


def _differentiate(loss: Tensor, tensors: list[Tensor]) -> tuple[Tensor | None, ...]:
    if not loss.requires_grad:
        return (None,) * len(tensors)
    try:
        return torch.autograd.grad(loss, tensors, allow_unused=True)
    except RuntimeError as error:
        if "heckpoint" in str(error):
            raise RuntimeError(
                "the climb cannot differentiate through reentrant checkpoints: use "
                "torch.utils.checkpoint with use_reentrant=False"
            ) from error
        raise


def _is_half_way(loss: Tensor) -> bool:
    """Whether gradients come through float16, under autocast, say."""
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if any(tensor.dtype == torch.float16 for tensor in getattr(node, "_input_metadata", ())):
            return True
        nodes.extend(following for following, _ in node.next_functions)
    return False


def _is_checkpointed() -> bool:
    """Whether somebody watches what is saved for a backward pass, as a checkpoint around does."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def _own_graph() -> Any:
    """A context in which a checkpoint around does not see what the climb saves."""
    if _is_checkpointed():
        return saved_tensors_hooks(lambda tensor: tensor.detach(), lambda tensor: tensor)
    return nullcontext()


def _random_state() -> list[Tensor]:
    states = [torch.get_rng_state()]
    if torch.accelerator.is_available():
        states.append(torch.get_device_module().get_rng_state())
    return states


def _set_random_state(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.get_device_module().set_rng_state(state)


@contextmanager
def _ungathered(module: Any) -> Iterator[None]:
    """FSDP2 gathers weights as the first of the hooks, if it came after us: let it do so again."""
    shards = hasattr(module, "reshard")
    if shards:
        module.reshard()
        kept = not all(is_sharded(param) for param in module.parameters(recurse=False))
        if kept:  # the outermost module's, for the backward pass
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()
            module.set_reshard_after_forward(False, recurse=False)
    yield
    if shards:
        module.unshard()


@contextmanager
def _suspended(optimizer: WeightPerturbation, stay: _Stay) -> Iterator[None]:
    run, perturbation = optimizer._run, stay.perturbation
    this, run.current_pass = run.current_pass, None
    try:
        with perturbation.suspended() if perturbation is not None else nullcontext():
            yield
    finally:
        run.current_pass = this


def _refuse_backward(stay: _Stay, output: Any) -> None:
    """An output computed at `w` must not be differentiated at `w + v`."""

    def reached(_: Tensor) -> None:
        if not stay.ended:
            raise RuntimeError(
                "a backward pass through an evaluation of an attached module, made at w, while the "
                "weights are at w + v: make it before the training forward pass, or after backward"
            )

    for tensor in _with_graph(output):
        tensor.register_hook(reached)  # type: ignore[no-untyped-call]


def _with_graph(output: Any) -> list[Tensor]:
    """The tensors in an output through which gradients come."""
    leaves = tree_leaves(output)
    for leaf in leaves:  # also in objects, one level deep
        if not isinstance(leaf, Tensor) and hasattr(leaf, "__dict__"):
            leaves = [*leaves, *tree_leaves(dict(vars(leaf)))]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.grad_fn is not None]


def _keep_gradients(optimizer: WeightPerturbation) -> Callable[[], None]:
    """That earlier micro-batches of this step have computed gradients."""
    run, earlier = optimizer._run, optimizer._run.has_gradients

    def keep() -> None:
        run.has_gradients = run.has_gradients or earlier

    return keep


def _at_end_of_backward(callback: Callable[[], None]) -> None:
    torch.autograd.Variable._execution_engine.queue_callback(callback)


def _calling_frame() -> FrameType | None:
    """That of the module's call, which lives as long as the call."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename != nn.modules.module.__file__:
        frame = frame.f_back
    return frame


def _is_running(searched: FrameType | None) -> bool:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame is not searched:
        frame = frame.f_back
    return frame is not None
