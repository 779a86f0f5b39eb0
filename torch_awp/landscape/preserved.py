"""Evaluate a model again and again, always from the same state, and leave it as it was."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from numbers import Real

import torch
from torch import Tensor, nn

from torch_awp.functional import clone_tensors
from torch_awp.perturbation import insist

LossFunction = Callable[[nn.Module], Tensor | float]
RandomState = tuple[Callable[[Tensor], None], Tensor]  # how to set it, and to what

# With what loss_fn may set: recalibrating BatchNorm with torch's update_bn sets its momentum.
_ATTRIBUTES = ("training", "momentum")


class Snapshot:
    """What evaluating a model may change, and the weights that the caller is going to move.

    Args:
        weights: parameters whose values are saved; others are taken to stay as they are.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, weights: Sequence[Tensor]) -> None:
        modules = list(model.modules())
        self._attributes = [
            (module, name, getattr(module, name))
            for module in modules
            for name in _ATTRIBUTES
            if hasattr(module, name)
        ] + [
            (module, name, buffer)
            for module in modules
            for name, buffer in module.named_buffers(recurse=False)
        ]
        # A buffer whose elements share memory (an expanded one) cannot be written in place at all.
        buffers = [b for b in model.buffers() if not (0 in b.stride() and b.numel() > 1)]
        self._tensors = [*weights, *buffers]
        self._values = clone_tensors(self._tensors) if self._tensors else []
        self._params = [(param, param.grad, param.requires_grad) for param in model.parameters()]
        self._random_state = _random_state([*model.parameters(), *model.buffers()])

    @torch.no_grad()
    def rewind(self) -> None:
        """Bring back values, modes and random state: what every evaluation starts from."""
        for module, name, value in self._attributes:
            setattr(module, name, value)
        if self._tensors:
            torch._foreach_copy_(self._tensors, self._values)
        for set_state, state in self._random_state:
            set_state(state)
        torch.clear_autocast_cache()

    def restore(self) -> None:
        """Bring back everything."""
        self.rewind()
        for param, grad, requires_grad in self._params:
            param.grad = grad
            param.requires_grad_(requires_grad)


@contextmanager
def preserved(model: nn.Module, weights: Sequence[Tensor]) -> Iterator[Snapshot]:
    """Context that ends with the model and torch's random state bit for bit as they were.

    Inside, gradients are set aside, so that a backward pass finds and leaves none of the caller's.
    Inference mode is off, which would let no gradient be taken and mark what is returned.
    """
    snapshot = Snapshot(model, weights)
    try:
        for param in model.parameters():
            param.grad = None
        with torch.inference_mode(False):
            yield snapshot
    finally:
        insist(snapshot.restore)


def evaluate(model: nn.Module, loss_fn: LossFunction) -> Tensor:
    """Return ``loss_fn(model)`` without a graph, as a tensor without dimensions.

    Raises:
        ValueError: it is not a number.
    """
    with torch.no_grad():
        return scalar(loss_fn(model)).clone()


def scalar(loss: Tensor | float) -> Tensor:
    """Return a loss as a tensor without dimensions; Python's floats become float64."""
    if isinstance(loss, Real):
        return torch.tensor(float(loss), dtype=torch.float64, device="cpu")
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        raise ValueError(f"loss_fn(model) must be a scalar, got {found}")
    return loss.reshape(())


def _random_state(tensors: list[Tensor]) -> list[RandomState]:
    """Torch's global random states that a model on the tensors' devices can draw from."""
    states: list[RandomState] = [(torch.set_rng_state, torch.get_rng_state())]
    for device in {t.device for t in tensors if t.device.type not in ("cpu", "meta")}:
        backend = torch.get_device_module(device)
        place = {} if device.type == "mps" else {"device": device}  # there is one mps device
        states.append((partial(backend.set_rng_state, **place), backend.get_rng_state(**place)))
    return states
