"""What the constructors accept; anything else is an error that names the argument and its value."""

import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

from torch import Tensor
from torch.optim import Optimizer

Choice = TypeVar("Choice", bound=str)
Select = Callable[[str, Tensor], bool]


def checked_real(name: str, value: Any, *, positive: bool = False) -> float:
    """Return a finite number that is at least (``positive``: above) zero, as a float.

    >>> checked_real("gamma", -1)
    Traceback (most recent call last):
    ...
    ValueError: gamma must be a finite number >= 0, got -1
    """
    number = float(value) if isinstance(value, float | int | Real) else math.nan
    if not (math.isfinite(number) and (number > 0 if positive else number >= 0)):
        bound = "> 0" if positive else ">= 0"
        raise ValueError(f"{name} must be a finite number {bound}, got {value!r}")
    return number


def checked_integer(name: str, value: Any, *, minimum: int) -> int:
    """Return an integer that is at least ``minimum``."""
    if not isinstance(value, Integral) or value < minimum:
        raise ValueError(f"{name} must be an integer >= {minimum}, got {value!r}")
    return int(value)


def checked_choice(name: str, value: Choice, choices: Sequence[str]) -> Choice:
    """Return a value that is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def checked_select(select: Select | None, optimizer: Optimizer) -> Select | None:
    """Return ``select`` if it can be asked about every tensor of the optimizer by name."""
    if select is None:
        return None
    if not callable(select):
        raise ValueError(f"select must be None or a callable (name, param) -> bool, got {select!r}")
    if any("param_names" not in group for group in optimizer.param_groups):
        cls = type(optimizer).__name__
        raise ValueError(
            f"select={select!r} needs parameter names, which this {cls} does not have: build it "
            f"with {cls}(model.named_parameters(), ...)"
        )
    return select


def is_selected(select: Select | None, name: str, weight: Tensor) -> bool:
    """Whether a tensor takes part; by default those with more than one dimension do."""
    return weight.ndim > 1 if select is None else bool(select(name, weight))
