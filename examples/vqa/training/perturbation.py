"""The ways to train that the examples compare: one base optimizer, wrapped differently."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation

Perturbed = AdversarialWeightPerturbation | RandomWeightPerturbation

Method = Literal["plain", "rwp", "awp", "awp-update"]

METHOD_NAMES: dict[Method, str] = {
    "plain": "plain AdamW",
    "rwp": "RWP",
    "awp": "AWP",
    "awp-update": 'AWP, ascent="update"',
}


@dataclass(frozen=True)
class PerturbationRule:
    """How a perturbation of a given gamma is made; the defaults are those of `torch_awp`."""

    steps: int = 1
    """Ascent steps of `"awp"`."""
    constraint: Literal["layer", "element"] = "layer"
    named_weight: bool = False
    """Move the tensors whose name contains "weight", not those with more than one dimension."""
    epsilon: float = 0.0
    """Added to both norms."""
    within: tuple[str, ...] = ()
    """Names of the only modules whose tensors move; none for all."""

    @property
    def select(self) -> Callable[[str, Tensor], bool] | None:
        """Which tensors move; None is the library's default."""
        if not self.named_weight and not self.within:
            return None
        return self._moves

    def _moves(self, name: str, parameter: Tensor) -> bool:
        if self.within and not any(name.startswith(f"{own}.") for own in self.within):
            return False
        return "weight" in name if self.named_weight else parameter.ndim > 1


_DEFAULT_RULE = PerturbationRule()


def perturbed(
    optimizer: torch.optim.Optimizer,
    method: Method,
    gamma: float,
    seed: int,
    rule: PerturbationRule = _DEFAULT_RULE,
) -> Perturbed:
    """Wrap an optimizer as a method demands.

    `"plain"` is wrapped, too, with a size of 0: it takes the optimizer's own steps, and a training
    loop need not tell it from the others.

    Args:
        optimizer: the base, built with `named_parameters()` if the rule asks for names.
        method: `"rwp"` moves the weights at random, `"awp"` uphill along the current gradient (one
            more pass for each of the rule's steps) and `"awp-update"` along the change that the
            last step made to the weights (no more passes).
        gamma: size of the perturbation relative to each weight tensor.
        seed: of the random perturbation.
        rule: how the perturbation is made.
    """
    select, constraint, epsilon = rule.select, rule.constraint, rule.epsilon
    if method == "plain":
        return AdversarialWeightPerturbation(optimizer, gamma=0.0)
    if method == "rwp":
        device = optimizer.param_groups[0]["params"][0].device
        return RandomWeightPerturbation(
            optimizer,
            gamma,
            constraint=constraint,
            select=select,
            epsilon=epsilon,
            generator=torch.Generator(device).manual_seed(seed),
        )
    return AdversarialWeightPerturbation(
        optimizer,
        gamma,
        steps=rule.steps if method == "awp" else 1,
        ascent="update" if method == "awp-update" else "current",
        constraint=constraint,
        select=select,
        epsilon=epsilon,
    )
