"""The loss as a function of the weights: curves, surfaces and one number for sharpness.

Nothing here changes a model for good: parameters, buffers, train/eval modes, gradients,
``requires_grad`` and torch's random state are bit for bit the same afterwards, also after an
exception or KeyboardInterrupt.
"""

from torch_awp.landscape.curves import interpolation_curve, loss_curve, loss_surface
from torch_awp.landscape.direction import cosine, filter_normalized_direction
from torch_awp.landscape.rise import sharpness

__all__ = [
    "cosine",
    "filter_normalized_direction",
    "interpolation_curve",
    "loss_curve",
    "loss_surface",
    "sharpness",
]
