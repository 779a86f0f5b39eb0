"""What a pass must do with the gradients it finds: clear them, then compute its own."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

Mark = tuple[Callable[[], Tensor | None] | None, int]
Marks = list[Mark]


@contextmanager
def adding_refused(params: Sequence[Tensor]) -> Iterator[None]:
    """Context that raises where a pass adds to gradients that were there before it.

    Those belong to other weights (another batch at ``w``, the ascent), so the sum would be neither
    the gradient at ``w`` nor that at ``w + v``. Trainers that accumulate gradients do this, and
    loops that clear them only after the step.

    Args:
        params: the tensors whose gradients are computed; the first with a gradient is watched.

    Raises:
        RuntimeError: on leaving, if the first accumulation into that gradient found it as it was.
    """
    param = next((p for p in params if p.requires_grad and p.grad is not None), None)
    if param is None or param.grad is None:
        yield
        return
    older = weakref.ref(param.grad)  # weak, so that it can be freed
    mark = (older, param.grad._version)
    last_computed: list[bool] = []
    added: list[bool] = []

    def computed(_: Tensor) -> None:
        now = param.grad
        # `grad.data.zero_()` leaves no trace but its zeros.
        last_computed[:] = [now is not None and _is_as_before(now, mark) and bool(now.any())]

    def accumulated(_: Tensor) -> None:  # torch.autograd.grad computes and accumulates nothing
        added.extend(last_computed)

    handles = [
        param.register_hook(computed),  # type: ignore[no-untyped-call]
        param.register_post_accumulate_grad_hook(accumulated),  # type: ignore[no-untyped-call]
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if any(added) and param.grad is not None and param.grad is older():
        raise RuntimeError(
            "a pass added to gradients that were there before: clear them at the beginning of each "
            "pass, and let one pass go over all batches that a step accumulates (a trainer that "
            "accumulates by itself, as Lightning's accumulate_grad_batches does, shows only the "
            "last). To add on purpose use perturb()"
        )


def marks(params: Sequence[Tensor]) -> Marks:
    """What gradients look like, to be compared by :func:`computed_since`; none is kept alive."""
    grads = (param.grad for param in params)
    return [(None, 0) if grad is None else (weakref.ref(grad), grad._version) for grad in grads]


def computed_since(before: Marks, params: Sequence[Tensor]) -> bool:
    """Whether any gradient was computed since ``before`` (or written by other means)."""
    for param, mark in zip(params, before, strict=True):
        if param.grad is not None and not _is_as_before(param.grad, mark):
            return True
    return False


def _is_as_before(grad: Tensor, mark: Mark) -> bool:
    older, version = mark
    return older is not None and older() is grad and grad._version == version
