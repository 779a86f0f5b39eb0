"""Kinds of checkpoint files that people have, and where their tensors belong in a model here.

A model lists its kinds as `published_formats`; `vqa.models.published.load_published` does the
loading. So a model module states facts about names and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Drop:
    """A tensor of a file that the model has no use for."""

    reason: str
    """Why, as the report prints it: "classifier of Kinetics-400"."""


def _nothing(name: str) -> None:
    return None


def _as_is(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return tensors


@dataclass(frozen=True)
class Format:
    """One kind of checkpoint file and where its tensors go.

    Keys arrive without a "module." prefix of data-parallel training; names are those of the
    model's `state_dict()`.
    """

    name: str
    """What people call it: "Video Swin, Kinetics-400, authors"."""
    recognises: Callable[[Mapping[str, Tensor]], bool]
    """Whether a file is of this kind, by its keys."""
    place: Callable[[str], str | Drop]
    """File key -> name in the model, or why the tensor is dropped.

    A name that the model lacks makes the file an error, so unknown keys may be passed on.
    """
    keeps: Callable[[str], str | None] = _nothing
    """Model name -> why the file need not have it; `None` where it must."""
    copies: Callable[[str], str | None] = _nothing
    """Model name that the file may lack -> model name whose tensor it can take instead."""
    convert: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = _as_is
    """The file's tensors by its keys -> those that `place` gets, where a file joins or splits some.

    It must not change what it is given.
    """


def own_names(model: nn.Module) -> Format:
    """The format of this project's own checkpoints: every tensor under the model's own name."""
    names = model.state_dict().keys()

    def recognises(tensors: Mapping[str, Tensor]) -> bool:
        return 2 * len(names & tensors.keys()) > len(names)

    return Format(name="names of this project", recognises=recognises, place=lambda key: key)
