"""Where only the end of a model is perturbed, what runs before it is computed once a step.

Nothing that runs before the first module of the end can depend on a tensor of the end. So its
outputs are the same in every pass of a step: the first pass keeps them, the later ones take them.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

Outputs = dict[nn.Module, list[Any]]


class ComputedOnce:
    """Keeps what runs before the end of a model (names of modules) for the later passes of a step.

    The graphs live as long, so that the last backward pass goes through all of the model.
    """

    def __init__(self, model: nn.Module, end: Sequence[str]) -> None:
        modules = dict(model.named_modules())
        self._end = [modules[name] for name in end]
        inside = {module for own in self._end for module in own.modules()}
        self._before = [
            module
            for module in modules.values()
            if module not in inside and inside.isdisjoint(module.modules())
        ]
        self._kept: dict[Hashable, Outputs] = {}

    @contextmanager
    def outputs_of(self, batch: Hashable) -> Iterator[None]:
        """Around a forward pass of a batch: the first keeps outputs, the others take them."""
        if not self._end:
            yield
            return
        calls, own = _Calls(self._kept.get(batch)), {}
        for module in (*self._end, *self._before):
            own[module] = vars(module).get("forward")  # others may have replaced it, too
        for module in self._end:
            module.forward = partial(calls.of_the_end, module.forward)
        for module in self._before:
            module.forward = partial(calls.before_the_end, module, module.forward)
        try:
            yield
        finally:
            for module, forward in own.items():
                if forward is None:
                    del module.forward  # its class's is there again
                else:
                    module.forward = forward
        self._kept.setdefault(batch, calls.made)

    def forget(self) -> None:
        """At the end of a step: let the outputs and their graphs go."""
        self._kept.clear()


class _Calls:
    """Forward methods that keep what they return, or return what was kept, until the end begins."""

    def __init__(self, kept: Outputs | None) -> None:
        self.made: Outputs = {}
        self._left = {module: list(own) for module, own in (kept or {}).items()}
        self._keeps = kept is None

    def of_the_end(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._keeps = False
        return forward(*args, **kwargs)

    def before_the_end(
        self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        if self._left.get(module):
            return self._left[module].pop(0)
        if not self._keeps:  # after the end has begun, or within a module that is kept whole
            return forward(*args, **kwargs)
        self._keeps = False
        output = forward(*args, **kwargs)
        self._keeps = True
        self.made.setdefault(module, []).append(output)
        return output
