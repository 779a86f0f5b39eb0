"""The optimizer of a recipe, which every method drives by the same `step(closure)`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pytorch_optimizer import SAM
from torch import nn

from benchmarks.generalization_grounds.methods import Recipe
from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation


class ClosureSam(SAM):
    """pytorch_optimizer's SAM, whose `step` takes the first pass too instead of its caller."""

    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        """Clean pass, climb, second pass, back, base step; the clean loss.

        Raises:
            ValueError: there is no closure.
        """
        if closure is None:
            raise ValueError("closure: expected a callable, got None")
        with torch.enable_grad():
            loss = closure()
        super().step(closure)
        return loss


def build_optimizer(
    model: nn.Module, recipe: Recipe, learning_rate: float, weight_decay: float, seed: int
) -> torch.optim.Optimizer:
    """AdamW, perturbed as the recipe says.

    Args:
        model: whose parameters are trained.
        recipe: its own weight decay goes before `weight_decay`.
        learning_rate: of AdamW.
        weight_decay: of AdamW, decoupled.
        seed: of the random perturbation.
    """
    decay = weight_decay if recipe.weight_decay is None else recipe.weight_decay
    if recipe.perturbation == "sam":
        return ClosureSam(
            model.parameters(),
            torch.optim.AdamW,
            rho=recipe.magnitude,
            lr=learning_rate,
            weight_decay=decay,
            fused=True,
        )
    base = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=decay, fused=True)
    if recipe.perturbation == "rwp":
        generator = torch.Generator().manual_seed(seed)
        return RandomWeightPerturbation(base, recipe.magnitude, generator=generator)
    if recipe.perturbation == "awp":
        return AdversarialWeightPerturbation(
            base,
            recipe.magnitude,
            steps=recipe.steps,
            interval=recipe.interval,
            ascent=recipe.ascent,
            constraint=recipe.constraint,
        )
    return base
