"""The optimizer of a recipe, which every method drives by the same `step(closure)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from pytorch_optimizer import SAM
from torch import Tensor, nn

from benchmarks.generalization_grounds.methods import Recipe
from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation

Base = Literal["adamw", "sgd"]

_BASES: Mapping[Base, Any] = {
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}
_SETTINGS: Mapping[Base, Mapping[str, Any]] = {
    "adamw": {"fused": True},
    "sgd": {"fused": True, "momentum": 0.9},
}


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
    model: nn.Module,
    recipe: Recipe,
    learning_rate: float,
    weight_decay: float,
    seed: int,
    steps: int,
    base: Base = "adamw",
) -> torch.optim.Optimizer:
    """The base optimizer, perturbed as the recipe says.

    Args:
        model: whose parameters are trained.
        recipe: its own weight decay goes before `weight_decay`.
        learning_rate: of the base.
        weight_decay: of the base; that of AdamW is decoupled, that of SGD a term of the gradient.
        seed: of the random perturbation.
        steps: of the whole training.
        base: `"sgd"` has a momentum of 0.9.
    """
    start_step = round(recipe.start * steps)
    decay = weight_decay if recipe.weight_decay is None else recipe.weight_decay
    if recipe.perturbation == "sam":
        return ClosureSam(
            model.parameters(),
            _BASES[base],
            rho=recipe.magnitude,
            lr=learning_rate,
            weight_decay=decay,
            **_SETTINGS[base],
        )
    plain: torch.optim.Optimizer = _BASES[base](
        model.named_parameters(), lr=learning_rate, weight_decay=decay, **_SETTINGS[base]
    )
    if recipe.perturbation == "rwp":
        generator = torch.Generator().manual_seed(seed)
        return RandomWeightPerturbation(
            plain, recipe.magnitude, generator=generator, start_step=start_step
        )
    if recipe.perturbation == "awp":
        return AdversarialWeightPerturbation(
            plain,
            recipe.magnitude,
            start_step=start_step,
            steps=recipe.steps,
            interval=recipe.interval,
            ascent=recipe.ascent,
            constraint=recipe.constraint,
            select=None if recipe.last is None else _among_the_last(model, recipe.last),
        )
    return plain


def _among_the_last(model: nn.Module, count: int) -> Callable[[str, Tensor], bool]:
    """Whether a tensor is one of the last `count` that have more than one dimension."""
    names = [name for name, own in model.named_parameters() if own.ndim > 1][-count:]
    return lambda name, _: name in names
