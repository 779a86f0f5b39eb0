"""What each method leaves open, decided by the validation score and nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.generalization_grounds.methods import (
    INDEPENDENT,
    ORDINARY,
    Method,
    Recipe,
    dependent,
)
from benchmarks.generalization_grounds.runs import Job, Runner

_SIZES = {"rwp": "gamma", "awp": "gamma", "sam": "rho", "ridge": "alpha", "svr": "C"}


@dataclass(frozen=True)
class Choice:
    """A method with its open value decided."""

    title: str
    recipe: Recipe
    validation: Mapping[float, float]
    """Value -> mean validation score; empty where nothing was open."""

    @property
    def setting(self) -> str:
        """What the recipe does differently, for people.

        >>> Choice("AWP", Recipe("awp", 0.02, dropout=0.5), {}).setting
        'gamma 0.02, dropout 0.5'
        """
        recipe, parts = self.recipe, []
        if recipe.perturbation != "none" or recipe.learner != "network":
            size = _SIZES.get(recipe.learner) or _SIZES[recipe.perturbation]
            parts.append(f"{size} {recipe.magnitude:g}")
        if recipe.dropout:
            parts.append(f"dropout {recipe.dropout:g}")
        if recipe.weight_decay is not None:
            parts.append(f"decay {recipe.weight_decay:g}")
        if recipe.climb_share != 1:
            parts.append(f"{recipe.climb_share:g} of the batch")
        if recipe.start:
            parts.append(f"after {recipe.start:g} of the steps")
        if recipe.length != 1:
            parts.append(f"{recipe.length:g} of the steps")
        return ", ".join(parts)


def choose_all(runner: Runner, seeds: Sequence[int]) -> dict[str, Choice]:
    """Decide every method; those that build on others come last."""
    choices = _choose(runner, INDEPENDENT, seeds)
    recipes = {name: choice.recipe for name, choice in choices.items()}
    return choices | _choose(runner, dependent(recipes, best_ordinary(choices)), seeds)


def best_ordinary(choices: Mapping[str, Choice]) -> str:
    """The ordinary regulariser with the best validation score."""
    return max(ORDINARY, key=lambda name: max(choices[name].validation.values()))


def _choose(
    runner: Runner, methods: Mapping[str, Method], seeds: Sequence[int]
) -> dict[str, Choice]:
    grids = runner.build().grids
    methods = {
        n: method for n, method in methods.items() if not method.grid or method.grid in grids
    }
    candidates = {name: method.candidates(grids) for name, method in methods.items()}
    recipes = [recipe for own in candidates.values() for recipe in own.values()]
    jobs = [Job(recipe, seed, "validation") for seed in seeds for recipe in recipes]
    outcomes = runner.outcomes(jobs, "tuning")
    choices = {}
    for name, method in methods.items():
        scores = {
            value: statistics.mean(outcomes[Job(recipe, s, "validation")].score for s in seeds)
            for value, recipe in candidates[name].items()
        }
        best = max(scores, key=lambda value: scores[value]) if scores else None
        recipe = method.recipe if best is None else candidates[name][best]
        choices[name] = Choice(method.title, recipe, scores)
    return choices
