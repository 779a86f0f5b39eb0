"""Load published weights into a model: completely, or with a reason for everything left out.

A model lists the kinds of file that people have as `published_formats`, which state facts about
names and nothing else.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

# Where both are in a file, the moving average is what its authors tested.
_WRAPPERS = (
    *("params_ema", "state_dict", "model_state_dict", "model", "model_state", "weights"),
    *("params", "net", "network", "state_dict_ema", "model_ema", "ema"),
)
# Of compilation, data parallelism, averaging and training frameworks.
_PREFIXES = ("_orig_mod.", "module.", "model.")
_COUNT_OF_AVERAGES = "n_averaged"
_NAMES_SHOWN = 8

# Whose a file of published weights is by how its name begins: these fit one another's models.
_OWNERS = (
    (r"fast_vqa_3d|faster_?vqa", "FasterVQA", ()),
    (r"fast_vqa_m", "FAST-VQA-M", ("fast_vqa_m",)),
    (r"fast_vqa", "FAST-VQA", ("fast_vqa",)),
    (r"sama", "SAMA", ("sama_vqa", "sama_iqa")),
)

# Harmless kinds of number that published files hold beside the tensors, e.g. as test results;
# torch's safe loader refuses them unless they are named, under their old and new addresses.
_NUMPY_NUMBERS: list[Any] = [
    np.dtype,
    type(np.dtype(np.float32)),
    type(np.dtype(np.float64)),
    type(np.dtype(np.int64)),
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
]


class PublishedWeightsError(ValueError):
    """A file is missing, unreadable, of an unknown kind or does not fit the model."""


@dataclass(frozen=True)
class Drop:
    """A tensor of a file that the model has no use for."""

    reason: str
    """Why, as the report prints it: "classifier of Kinetics-400"."""


@dataclass(frozen=True)
class Format:
    """One kind of checkpoint file; its keys come without prefixes, names are the model's own."""

    name: str
    """What people call it: "Video Swin, Kinetics-400, authors"."""
    marks: tuple[str, ...]
    """What keys of such a file begin with, all of these; the first kind listed that fits counts."""
    place: Callable[[str], str | Drop]
    """File key -> name in the model; one that the model lacks makes the file an error."""
    keeps: Callable[[str], str | None] = lambda name: None
    """Model name -> why the file need not have it; `None` where it must."""
    copies: Callable[[str], str | None] = lambda name: None
    """Model name that the file may lack -> model name whose tensor it can take instead."""
    convert: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = lambda tensors: tensors
    """Tensors by the file's keys -> those that `place` gets, without changing what it is given."""


def keeps_counts(name: str) -> str | None:
    """For `Format.keeps`: BatchNorm's counts."""
    if name.endswith("num_batches_tracked"):
        return "a count of training batches, which older files lack and nothing here reads"
    return None


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor of a file and of the model; `str()` is for people."""

    format: str
    """The kind of file."""
    loaded: tuple[str, ...]
    """Names in the model that have a tensor of the file."""
    copied: dict[str, str]
    """Names in the model that the file lacks -> name whose loaded tensor they took."""
    kept: dict[str, str]
    """Names in the model that stay as they were -> reason."""
    dropped: dict[str, str]
    """Keys of the file that are not used -> reason."""

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.copied) + len(self.kept)
        lines = [f"{self.format}: loaded {len(self.loaded)} of the model's {total} tensors"]
        if self.copied:
            pairs = [f"{name} from {source}" for name, source in self.copied.items()]
            lines.append(f"  copied {len(pairs)}: {_shown(pairs)}")
        lines += _by_reason("kept", self.kept)
        lines += _by_reason("dropped", self.dropped)
        return "\n".join(lines)


def other_owner(path: Path, model: str) -> str | None:
    """Of which other model the weights are known by the name of their file; None if of none.

    >>> other_owner(Path("FAST_VQA_3D_1_1.pth"), "fast_vqa")
    'FasterVQA'
    """
    name = re.sub(r"\W+", "_", path.name.lower())
    owner = next((own for own in _OWNERS if re.match(own[0], name)), None)
    return None if owner is None or model in owner[2] else owner[1]


def load_published(
    model: nn.Module,
    source: str | PathLike[str] | Mapping[str, Any],
    *,
    copy_missing: bool = False,
    allow_shape_mismatch: bool = False,
) -> LoadReport:
    """Load a checkpoint, file or content, by the key names that it was published with.

    The kind of file is recognised by its keys, among the model's `published_formats` and its own
    names. `{"state_dict": ...}` and its like are unwrapped, and the prefixes "_orig_mod.",
    "module." and "model." are removed in whatever order they come. No code of a file is run, and
    everything is checked before the first weight changes.

    `copy_missing` gives a tensor that the file lacks the one that its format names in its place.
    (A Kinetics-400 file has no fragment tables; the paper starts them at zero, this starts them as
    the relative tables.) `allow_shape_mismatch` keeps, and reports, a tensor whose shape in the
    file is another one, instead of raising. (What the published training code does without a word,
    for instance to every position table when FAST-VQA-M starts from Kinetics-400 weights.)
    """
    where = "state dict" if isinstance(source, Mapping) else str(Path(source))
    content = source if isinstance(source, Mapping) else _read(Path(source))
    try:
        format_, tensors = _recognised(model, _unwrapped(content))
        return _load(model, tensors, format_, copy_missing, allow_shape_mismatch)
    except PublishedWeightsError as error:
        raise PublishedWeightsError(f"{where}: {error}") from None


def _read(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            # The length of a JSON header and the header, whatever the file's name.
            if file.read(9)[8:] == b"{":
                return load_file(path)
        with torch.serialization.safe_globals(_NUMPY_NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise PublishedWeightsError(f"{path}: expected a checkpoint, there is no file") from error
    except Exception as error:  # torch.load raises whatever the damage leads to
        # Torch's text is a page of advice, such as to run whatever code is in the file.
        why = "" if isinstance(error, UnpicklingError) else f" ({error})"
        raise PublishedWeightsError(
            f"{path}: expected a file of tensors and plain values that loads without running code"
            f" from it{why}"
        ) from error


def _unwrapped(content: Any) -> Mapping[str, Tensor]:
    """The state dict in a file's content."""
    while isinstance(content, Mapping):
        inside = (content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping))
        found = next(inside, None)
        if found is None:
            break
        content = found
    if not isinstance(content, Mapping) or not content:
        raise PublishedWeightsError(f"expected a state dict, got {type(content).__name__}")
    for key, value in content.items():
        if not isinstance(value, Tensor):
            raise PublishedWeightsError(
                f"expected a state dict of tensors, got {type(value).__name__} under {key!r}"
            )
    return content


def _recognised(
    model: nn.Module, tensors: Mapping[str, Tensor]
) -> tuple[Format, Mapping[str, Tensor]]:
    """The file's kind, and its tensors without the prefixes that the kind does not know."""
    names = model.state_dict().keys()
    own = Format(name="names of this project", marks=(), place=lambda key: key)
    published: Sequence[Format] = getattr(model, "published_formats", ())
    left: Mapping[str, Tensor] | None = tensors
    while left is not None:
        for format_ in published:
            if all(any(key.startswith(mark) for key in left) for mark in format_.marks):
                return format_, left
        if 2 * len(names & left.keys()) > len(names):
            return own, left
        left = _without_prefix(left)
    known = "; ".join(format_.name for format_ in (*published, own))
    raise PublishedWeightsError(
        f"expected weights for {type(model).__name__} ({known}), got keys {_shown(list(tensors))}"
    )


def _without_prefix(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
    """The tensors without a prefix that all have; None if there is none."""
    named = {key: tensor for key, tensor in tensors.items() if key != _COUNT_OF_AVERAGES}
    for prefix in _PREFIXES:
        if named and all(key.startswith(prefix) for key in named):
            return {key.removeprefix(prefix): tensor for key, tensor in named.items()}
    return None


def _load(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    format_: Format,
    copy_missing: bool,
    allow_shape_mismatch: bool,
) -> LoadReport:
    own = model.state_dict()
    placed, dropped = _place(tensors, format_)
    mismatched = {
        name: f"shape {tuple(own[name].shape)}, in the file {tuple(tensor.shape)}"
        for name, tensor in placed.items()
        if name in own and own[name].shape != tensor.shape
    }
    fitting = {name: tensor for name, tensor in placed.items() if name not in mismatched}
    missing = [name for name in own if name not in placed]
    stand_ins = {name: format_.copies(name) for name in missing} if copy_missing else {}
    copied = {name: source for name, source in stand_ins.items() if source in fitting}
    absent = [name for name in missing if name not in copied]
    kept = {name: reason for name in absent if (reason := format_.keeps(name)) is not None}
    of_another_shape = [f"{name} ({shapes})" for name, shapes in mismatched.items()]
    problems = {
        "missing": [name for name in absent if name not in kept],
        "unknown": [name for name in placed if name not in own],
        "with NaN": [name for name, tensor in placed.items() if bool(tensor.isnan().any())],
        "of another shape": [] if allow_shape_mismatch else of_another_shape,
    }
    if any(problems.values()):
        found = [f"{len(all_)} {kind}: {_shown(all_)}" for kind, all_ in problems.items() if all_]
        raise PublishedWeightsError(
            f"recognised as {format_.name}, but does not fit {type(model).__name__}: "
            + "; ".join(found)
        )
    sources = {name: fitting[source] for name, source in copied.items()}
    model.load_state_dict({**own, **fitting, **sources})
    return LoadReport(format_.name, tuple(fitting), copied, kept | mismatched, dropped)


def _place(
    tensors: Mapping[str, Tensor], format_: Format
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The file's tensors by the model's names, and what is dropped with the reason."""
    placed: dict[str, Tensor] = {}
    dropped: dict[str, str] = {}
    for key, tensor in format_.convert(tensors).items():
        place = format_.place(key)
        if isinstance(place, Drop):
            dropped[key] = place.reason
        elif place in placed:
            raise PublishedWeightsError(f"expected one tensor for {place}, got another in {key!r}")
        else:
            placed[place] = tensor
    return placed, dropped


def _by_reason(verb: str, reasons: Mapping[str, str]) -> Iterator[str]:
    """One line for all names with the same reason."""
    for reason in dict.fromkeys(reasons.values()):
        names = [name for name, its in reasons.items() if its == reason]
        yield f"  {verb} {len(names)} ({reason}): {_shown(names)}"


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
