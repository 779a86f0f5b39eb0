"""A closure that a perturbation calls must clear the gradients before it computes new ones."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

Closure = Callable[[], Any]


def clearing(closure: Closure, params: Sequence[Tensor]) -> Closure:
    """Return the closure, made to raise where it adds to gradients that are there already.

    Those belong to other weights (another batch at ``w``, the ascent), so the sum would be neither
    the gradient at ``w`` nor that at ``w + v``. Trainers that accumulate gradients do this.

    Args:
        closure: the closure of a ``step(closure)`` that perturbs.
        params: the tensors whose gradients it computes; the first with a gradient is watched.
    """

    def checked() -> Any:
        for param in params:
            if param.requires_grad and param.grad is not None:
                return _call_watching(closure, param, param.grad)
        return closure()

    return checked


def _call_watching(closure: Closure, param: Tensor, older: Tensor) -> Any:
    version = older._version
    last_computed: list[bool] = []
    added: list[bool] = []

    def computed(_: Tensor) -> None:
        untouched = param.grad is older and older._version == version
        # `grad.data.zero_()` leaves no trace but its zeros.
        last_computed[:] = [untouched and bool(older.any())]

    def accumulated(_: Tensor) -> None:  # torch.autograd.grad computes and accumulates nothing
        added.extend(last_computed)

    handles = [
        param.register_hook(computed),  # type: ignore[no-untyped-call]
        param.register_post_accumulate_grad_hook(accumulated),  # type: ignore[no-untyped-call]
    ]
    try:
        loss = closure()
    finally:
        for handle in handles:
            handle.remove()
    if any(added) and param.grad is older:
        raise RuntimeError(
            "the closure added to gradients that were there before: clear them in it, and to "
            "accumulate over batches (Lightning's automatic accumulate_grad_batches, say) use the "
            "block form, perturb()"
        )
    return loss
