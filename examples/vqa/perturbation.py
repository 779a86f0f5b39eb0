"""The four ways to train that the examples compare: one base optimizer, four wrappings."""

from __future__ import annotations

from typing import Literal

import torch

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation

Method = Literal["plain", "rwp", "awp", "awp-previous"]

METHOD_NAMES: dict[Method, str] = {
    "plain": "plain AdamW",
    "rwp": "RWP",
    "awp": "AWP",
    "awp-previous": 'AWP, ascent="previous"',
}


def perturbed(
    optimizer: torch.optim.Optimizer, method: Method, gamma: float, seed: int
) -> torch.optim.Optimizer:
    """Wrap an optimizer as a method demands; `"plain"` is the optimizer itself.

    Args:
        optimizer: the base.
        method: `"rwp"` moves the weights at random, `"awp"` uphill along the current gradient (one
            more pass), `"awp-previous"` along the previous step's gradient (no more passes).
        gamma: size of the perturbation relative to each weight tensor.
        seed: of the random perturbation.
    """
    if method == "rwp":
        generator = torch.Generator().manual_seed(seed)
        return RandomWeightPerturbation(optimizer, gamma, generator=generator)
    if method == "awp":
        return AdversarialWeightPerturbation(optimizer, gamma)
    if method == "awp-previous":
        return AdversarialWeightPerturbation(optimizer, gamma, ascent="previous")
    return optimizer
