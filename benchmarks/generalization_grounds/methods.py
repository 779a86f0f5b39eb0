"""Ways to train that are compared: what each does to plain training, and what it may tune."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

Kind = Literal["none", "rwp", "awp", "sam"]
Tuned = Literal["magnitude", "dropout", "weight_decay", "length", "climb_share"]
Learner = Literal["network", "ridge", "svr"]


@dataclass(frozen=True)
class Recipe:
    """One way to train; what it leaves out is as the ground's plain training does it."""

    perturbation: Kind = "none"
    magnitude: float = 0.0
    """gamma of RWP and AWP, rho of SAM, alpha of ridge regression, C of the SVR."""
    steps: int = 1
    interval: int = 1
    ascent: Literal["current", "update"] = "current"
    constraint: Literal["layer", "element"] = "layer"
    dropout: float = 0.0
    weight_decay: float | None = None
    """None: the ground's."""
    length: float = 1.0
    """Optimizer steps in units of plain training's."""
    start: float = 0.0
    """Share of the steps that come before the first perturbed one."""
    climb_share: float = 1.0
    """Share of a batch whose gradient AWP climbs."""
    last: int | None = None
    """How many weight tensors AWP moves, from the end; None: all."""
    learner: Learner = "network"

    @property
    def passes(self) -> float:
        """Forward and backward passes in units of plain training's.

        >>> Recipe("awp", 0.01, steps=3, interval=2, length=0.5).passes
        1.25
        """
        if self.learner != "network":
            return 0.0
        if self.perturbation == "sam":
            return 2 * self.length
        climbs = self.perturbation == "awp" and self.ascent == "current"
        perturbed = (1 - self.start) / self.interval
        return self.length * (1 + climbs * self.steps * self.climb_share * perturbed)


@dataclass(frozen=True)
class Method:
    """A recipe, of which one value may be open."""

    title: str
    recipe: Recipe
    tuned: Tuned | None = None
    grid: str = ""
    """Which of the ground's grids the open value comes from."""

    def candidates(self, grids: Mapping[str, tuple[float, ...]]) -> dict[float, Recipe]:
        """Value -> recipe with that value; empty where nothing is open.

        A method whose grid the ground lacks cannot be had there.
        """
        if self.tuned is None:
            return {}
        changes: list[dict[str, Any]] = [{self.tuned: value} for value in grids[self.grid]]
        return {change[self.tuned]: replace(self.recipe, **change) for change in changes}


PLAIN = "plain"
ORDINARY = ("fewer-steps", "dropout", "weight-decay")
"""Regularisers that every framework has; none costs a pass."""


def _awp(title: str, recipe: Recipe) -> Method:
    return Method(title, recipe, "magnitude", "gamma")


INDEPENDENT: dict[str, Method] = {
    PLAIN: Method("plain", Recipe()),
    "fewer-steps": Method("plain, stopped early", Recipe(), "length", "length"),
    "double": Method("plain, twice as long", Recipe(length=2.0)),
    "dropout": Method("dropout", Recipe(), "dropout", "dropout"),
    "weight-decay": Method("weight decay", Recipe(), "weight_decay", "weight_decay"),
    "rwp": Method("RWP", Recipe("rwp"), "magnitude", "rwp"),
    "sam": Method("SAM", Recipe("sam"), "magnitude", "rho"),
    "awp": _awp("AWP", Recipe("awp")),
    "awp-update": Method(
        'AWP, ascent="update"', Recipe("awp", ascent="update"), "magnitude", "update"
    ),
    "awp-element": Method(
        "AWP, element constraint", Recipe("awp", constraint="element"), "magnitude", "element"
    ),
    "awp-last-2": Method("AWP on the last two layers", Recipe("awp", last=2), "magnitude", "end"),
    "awp-last-1": Method("AWP on the last layer", Recipe("awp", last=1), "magnitude", "end"),
    "ridge": Method("ridge regression", Recipe(learner="ridge"), "magnitude", "ridge"),
    "svr": Method("support vector regression", Recipe(learner="svr"), "magnitude", "svr"),
}
"""Methods that can be tuned before anything is known of the others."""


def dependent(chosen: Mapping[str, Recipe], ordinary: str) -> dict[str, Method]:
    """Methods that build on choices made for others: at AWP's gamma, or beside a regulariser.

    Args:
        chosen: the tuned recipes of `INDEPENDENT`.
        ordinary: the best of `ORDINARY`.
    """
    gamma, base = chosen["awp"].magnitude, chosen[ordinary]
    on_top = INDEPENDENT[ordinary].title
    return {
        "rwp-awp-gamma": Method("RWP at AWP's gamma", Recipe("rwp", gamma)),
        "awp-3": Method("AWP, 3 steps", Recipe("awp", gamma, steps=3)),
        "awp-every-2": Method("AWP, interval 2", Recipe("awp", gamma, interval=2)),
        "awp-every-4": Method("AWP, interval 4", Recipe("awp", gamma, interval=4)),
        "awp-every-8": Method("AWP, interval 8", Recipe("awp", gamma, interval=8)),
        "awp-late": Method("AWP in the last 30 %", Recipe("awp", gamma, start=0.7)),
        "awp-quarter": Method(
            "AWP, climbing on a quarter", Recipe("awp", gamma), "climb_share", "climb_share"
        ),
        "ordinary+awp": _awp(f"{on_top} + AWP", replace(base, perturbation="awp")),
        "ordinary+update": _awp(
            f'{on_top} + AWP, ascent="update"', replace(base, perturbation="awp", ascent="update")
        ),
    }
