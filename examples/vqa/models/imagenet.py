"""The normalisation that networks trained on ImageNet expect."""

import torch
from torch import Tensor

# Of red, green and blue over ImageNet, for pixels from 0 to 1.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalise(pixels: Tensor) -> Tensor:
    """Normalised float32 pixels of [..., 3, H, W], any dtype, from 0 to 255.

    >>> normalise(torch.full((3, 1, 1), 255, dtype=torch.uint8)).flatten()
    tensor([2.2489, 2.4286, 2.6400])
    """
    mean, deviation = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, DEVIATION))
    return (pixels / 255 - mean) / deviation
