"""Adversarial and random weight perturbation around any PyTorch optimizer, in two lines."""

from torch_awp import landscape
from torch_awp.adversarial import AdversarialWeightPerturbation
from torch_awp.random import RandomWeightPerturbation
from torch_awp.running_stats import freeze_running_stats

__version__ = "0.3.0"

__all__ = [
    "AdversarialWeightPerturbation",
    "RandomWeightPerturbation",
    "freeze_running_stats",
    "landscape",
]
