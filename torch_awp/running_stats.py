"""Keep running statistics still during an extra forward pass."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin


@contextmanager
def freeze_running_stats(model: nn.Module, enabled: bool = True) -> Iterator[None]:
    """Context in which running statistics do not move, while layers still normalise by the batch.

    Those of BatchNorm and SyncBatchNorm of any dimension, which then do not move inside either, and
    by putting the old values back on leaving every other buffer: InstanceNorm's statistics, those
    of layers made from BatchNorm, the vectors of spectral norm, the ranges of observers. Contexts
    nest; everything is as before after an exception.

    Args:
        model: a module that may contain such layers, or be one.
        enabled: False for a context that does nothing: ``freeze_running_stats(model, p.index > 0)``
            lets the first pass of a step alone move statistics.

    >>> import torch
    >>> model = nn.BatchNorm1d(2)
    >>> with freeze_running_stats(model):
    ...     output = model(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    >>> model.running_mean, output.mean(0).abs() < 1e-6
    (tensor([0., 0.]), tensor([True, True]))
    """
    with ExitStack() as stack:
        for module in model.modules() if enabled else ():
            if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
                continue  # its first forward pass is what makes the statistics
            if isinstance(module, _BatchNorm):
                # Read only while training: it then neither uses, updates nor counts.
                stack.enter_context(_attribute(module, "track_running_stats", False))
                if type(module).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward):
                    continue  # others may not ask, as detectron2's NaiveSyncBatchNorm does not
            stack.enter_context(_buffers_restored(module))
            if isinstance(getattr(module, "running_mean", None), Tensor) and hasattr(
                module, "momentum"
            ):
                # InstanceNorm updates whatever its flag says: weigh the new values with 0.
                stack.enter_context(_attribute(module, "momentum", 0.0))
        yield


@contextmanager
def _attribute(module: nn.Module, name: str, value: object) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


@contextmanager
def _buffers_restored(module: nn.Module) -> Iterator[None]:
    # A buffer whose elements share memory (an expanded one) cannot be written in place at all.
    before = {
        name: (buffer, buffer.detach().clone())
        for name, buffer in module.named_buffers(recurse=False)
        if not (0 in buffer.stride() and buffer.numel() > 1)
    }
    try:
        yield
    finally:
        for name, (buffer, value) in before.items():
            now = getattr(module, name, None)
            if now is not buffer and (now is None or now.shape != value.shape):
                continue  # not a statistic but a cache, made anew for longer inputs
            if now is not buffer:
                setattr(module, name, buffer)
            if buffer.shape != value.shape:
                buffer.resize_(value.shape)
            # Unseen by autograd: a backward pass may still come that does not need the old values.
            buffer.data.copy_(value)
