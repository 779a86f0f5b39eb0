"""An optimizer that is another one, its base, in everything it does not do itself."""

from collections.abc import Iterator
from typing import Any

from torch.optim import Optimizer


def _of_base(name: str) -> Any:
    """An attribute whose value is the base's, to read and to assign."""
    return property(
        lambda self: getattr(self.base, name), lambda self, value: setattr(self.base, name, value)
    )


class DelegatingOptimizer(Optimizer):
    """Shows the groups, state, defaults, hooks and further attributes of ``base`` as its own.

    They are the base's own objects, so that whatever looks at either sees one optimizer.
    """

    base: Optimizer

    def __init__(self, base: Optimizer) -> None:
        # Optimizer.__init__ is left out: it would make groups, state and hooks beside the base's.
        self.base = base
        self._connect()

    param_groups: list[dict[str, Any]] = _of_base("param_groups")
    state: Any = _of_base("state")
    defaults: dict[str, Any] = _of_base("defaults")

    def zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """The base's, whatever arguments it takes."""
        self.base.zero_grad(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # Private names stay private: torch.amp.GradScaler steps around who shows it the base's.
        if name.startswith("_") or "base" not in vars(self):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.base, name)

    def __setattr__(self, name: str, value: Any) -> None:
        own = name.startswith("_") or name in vars(self) or hasattr(type(self), name)
        if own or "base" not in vars(self) or not hasattr(self.base, name):
            super().__setattr__(name, value)
        else:
            setattr(self.base, name, value)

    def __getstate__(self) -> dict[str, Any]:
        # Left out: hooks, as in every torch optimizer, and the `step` that a scheduler puts into
        # the instance, which would step the original of a copy.
        return {
            key: value
            for key, value in vars(self).items()
            if not key.startswith("_") and key != "step"
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._connect()

    def _connect(self) -> None:
        """Take over the very dictionaries of hooks: one registered here fires once, in the base."""
        for optimizer in optimizers_of(self.base):
            hooks = {key: v for key, v in vars(optimizer).items() if key.endswith("_hooks")}
            if "_optimizer_step_post_hooks" in hooks:
                self.__dict__.update(hooks)
                return


def optimizers_of(base: Optimizer) -> Iterator[Optimizer]:
    """The base and, where it is one around others (Accelerate's, Lookahead), those inside."""
    yield base
    for value in vars(base).values():
        if isinstance(value, Optimizer):
            yield from optimizers_of(value)


def step_of(base: Optimizer, *args: Any, **kwargs: Any) -> tuple[Any, bool]:
    """Let the base step; return what it returns, and whether it did step.

    One around others decides that itself, as Accelerate's does between micro-batches.
    """
    _, *inside = optimizers_of(base)
    steps: list[None] = []
    handles = [
        optimizer.register_step_post_hook(lambda *_: steps.append(None))
        for optimizer in inside
        if hasattr(type(optimizer).step, "hooked")
    ]
    try:
        loss = base.step(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return loss, bool(steps) or not handles


def maximizes(base: Optimizer, group: dict[str, Any]) -> bool:
    """Whether the base steps uphill: in torch a value of the group, elsewhere an attribute."""
    if "maximize" in group:
        return bool(group["maximize"])
    return any(bool(getattr(optimizer, "maximize", False)) for optimizer in optimizers_of(base))
