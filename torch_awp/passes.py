"""The two objects that a training loop is written with: the loop over passes and the block."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of a step.

    Attributes:
        index: 0, 1, ... within the step.
        climbs: its gradient only serves to climb: another pass follows.
        perturbed: the weights are at ``w + v``.
    """

    index: int
    climbs: bool
    perturbed: bool


class Passes:
    """The passes of one step, to be gone through by ``for``.

    Each ``for`` gets an iterator of its own, which dies with the loop, however that is left, even
    where this object lives on: its end is what brings the weights home.
    """

    def __init__(self, run: Callable[[], Iterator[Pass]]) -> None:
        self._run = run
        self._used = False

    def __iter__(self) -> Iterator[Pass]:
        self._used = True
        return self._run()

    def __del__(self) -> None:
        if not self._used:
            _warn_unused("passes()", "for p in optimizer.passes():")


class Block(AbstractContextManager[None]):
    """One stay at ``w + v``, to be entered by ``with``."""

    def __init__(self, context: AbstractContextManager[object]) -> None:
        self._context = context
        self._used = False

    def __enter__(self) -> None:
        self._used = True
        self._context.__enter__()

    def __exit__(self, *exception: object) -> None:
        self._context.__exit__(*exception)  # type: ignore[arg-type]

    def __del__(self) -> None:
        if not self._used:
            _warn_unused("perturb()", "with optimizer.perturb():")


def _warn_unused(call: str, form: str) -> None:
    warnings.warn(f"{call} alone perturbs nothing: write `{form}`", stacklevel=3)
