"""The weights that a training begins with."""

from __future__ import annotations

from torch import nn

from vqa.models import load_published
from vqa.training.settings import Settings


def load_initial_weights(
    model: nn.Module,
    settings: Settings,
    copy_missing: bool = False,
    allow_shape_mismatch: bool = False,
) -> nn.Module:
    """Load `pretrained`, then `finetune_from`, as far as given, and print what became of each.

    Args:
        model: the freshly built model; it is what is returned.
        settings: of the script.
        copy_missing: as in `load_published`, for `pretrained`.
        allow_shape_mismatch: as in `load_published`, for `pretrained`.

    Raises:
        PublishedWeightsError: a file cannot be used.
    """
    if settings.pretrained is not None:
        report = load_published(
            model,
            settings.pretrained,
            copy_missing=copy_missing,
            allow_shape_mismatch=allow_shape_mismatch,
        )
        print(report)
    if settings.finetune_from is not None:
        print(load_published(model, settings.finetune_from))
    return model
