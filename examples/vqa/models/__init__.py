"""Quality models: nothing here knows how they are trained."""

from importlib import import_module

from torch import nn

from vqa.models.published import LoadReport, PublishedWeightsError, load_published, other_owner

__all__ = ["LoadReport", "PublishedWeightsError", "build_model", "load_published", "other_owner"]

# Module and class. A module is imported when its model is built: torchvision and timm take seconds,
# for which every process that only reads files would wait.
_MODELS = {
    "fast_vqa": ("fast_vqa", "FastVqa"),
    "fast_vqa_m": ("fast_vqa", "FastVqaM"),
    "sama_iqa": ("sama_iqa", "SamaIqa"),
    "sama_vqa": ("fast_vqa", "FastVqa"),
    "simple_vqa": ("simple_vqa", "SimpleVqa"),
    "tiny_fast_vqa": ("fast_vqa", "TinyFastVqa"),
    "tiny_sama_iqa": ("sama_iqa", "TinySamaIqa"),
    "tiny_simple_vqa": ("simple_vqa", "TinySimpleVqa"),
}

_SWIN3D = ("backbone.features.6", "backbone.norm", "head")
ENDS: dict[str, tuple[str, ...]] = {
    "fast_vqa": _SWIN3D,
    "fast_vqa_m": _SWIN3D,
    "sama_iqa": ("backbone.layers.3", "backbone.norm", "vqa_head"),
    "sama_vqa": _SWIN3D,
    "simple_vqa": ("backbone.layer4", "quality"),
    "tiny_fast_vqa": ("space.6", "space.7", "time", "head"),
    "tiny_sama_iqa": ("backbone.7", "backbone.8", "vqa_head"),
    "tiny_simple_vqa": ("backbone.stages.2", "quality"),
}
"""Of every model the names of its last stage and of what follows it."""


def build_model(name: str, **settings: int) -> nn.Module:
    """A freshly initialised model; `settings` are its constructor's arguments.

    SAMA scores video with FAST-VQA's model, on samples of its own; both names build it.
    """
    if name not in _MODELS:
        raise ValueError(f"name: expected one of {', '.join(sorted(_MODELS))}, got {name!r}")
    module, kind = _MODELS[name]
    model: nn.Module = getattr(import_module(f"vqa.models.{module}"), kind)(**settings)
    return model
