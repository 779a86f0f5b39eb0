"""Keep running statistics still during an extra forward pass."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@contextmanager
def freeze_running_stats(model: nn.Module) -> Iterator[None]:
    """Context in which running statistics do not move, while layers still normalise by the batch.

    Covers BatchNorm and SyncBatchNorm of any dimension, InstanceNorm with statistics, and, by
    putting the old values back on leaving, any other module with buffers of the same names.
    Contexts nest; everything is as before after an exception.

    Args:
        model: a module that may contain such layers, or be one.

    >>> import torch
    >>> model = nn.BatchNorm1d(2)
    >>> with freeze_running_stats(model):
    ...     output = model(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    >>> model.running_mean, output.mean(0).abs() < 1e-6
    (tensor([0., 0.]), tensor([True, True]))
    """
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
                continue  # its first forward pass is what makes the statistics
            if isinstance(module, _BatchNorm):
                # Read only while training: it then neither uses, updates nor counts.
                stack.enter_context(_attribute(module, "track_running_stats", False))
            elif isinstance(getattr(module, "running_mean", None), Tensor):
                # InstanceNorm updates whatever its flag says: weigh the new values with 0 and undo
                # what 0 * inf may have left.
                stack.enter_context(_buffers_restored(module))
                if hasattr(module, "momentum"):
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
    buffers = dict(module.named_buffers(recurse=False))
    before = {name: buffers[name].clone() for name in _STATISTICS if name in buffers}
    try:
        yield
    finally:
        for name, value in before.items():
            # Unseen by autograd: a backward pass may still come that does not need the old values.
            buffers[name].data.copy_(value)
