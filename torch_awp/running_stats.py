"""Freeze running statistics during an extra forward pass."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin


@contextmanager
def freeze_running_stats(model: nn.Module, enabled: bool = True) -> Iterator[None]:
    """Context in which running statistics do not change; layers still normalise by the batch.

    BatchNorm and SyncBatchNorm of any dimension do not update theirs inside. Every other buffer
    has its old values back after the context: InstanceNorm's statistics, those of layers derived
    from BatchNorm, the vectors of spectral norm, the ranges of observers. Contexts nest; everything
    is as before after an exception.

    Args:
        model: a module that may contain such layers, or be one.
        enabled: False for a context that does nothing: `freeze_running_stats(model, p.index > 0)`
            lets only the first pass of a step update statistics.

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
                _set(stack, module, "track_running_stats", False)
                if type(module).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward):
                    continue  # others may not ask, as detectron2's NaiveSyncBatchNorm does not
            for name, buffer in module.named_buffers(recurse=False):
                if is_writable(buffer):
                    stack.callback(_restore, module, name, buffer, buffer.detach().clone())
            if isinstance(getattr(module, "running_mean", None), Tensor) and hasattr(
                module, "momentum"
            ):
                # InstanceNorm updates whatever its flag says: weigh the new values with 0.
                _set(stack, module, "momentum", 0.0)
        yield


def is_writable(tensor: Tensor) -> bool:
    """Whether it can be written in place: one whose elements share memory (expanded) cannot."""
    return all(n <= 1 or by > 0 for n, by in zip(tensor.shape, tensor.stride(), strict=True))


def _set(stack: ExitStack, module: nn.Module, name: str, value: object) -> None:
    stack.callback(setattr, module, name, getattr(module, name))
    setattr(module, name, value)


def _restore(module: nn.Module, name: str, buffer: Tensor, value: Tensor) -> None:
    now = getattr(module, name, None)
    if now is not buffer and (now is None or now.shape != value.shape):
        return  # not a statistic but a cache, made anew for longer inputs
    setattr(module, name, buffer)
    if buffer.shape != value.shape:
        buffer.resize_(value.shape)
    # Unseen by autograd: a backward pass may still follow that does not need the old values.
    buffer.data.copy_(value)
