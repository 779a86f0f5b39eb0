"""Load published weights into a model: completely, or with a reason for everything left out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vqa.models.formats import Drop, Format, own_names

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
    """A file or state dict does not fit the model; the message says in what and names the file."""


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
    """Load a checkpoint by the key names that it was published with.

    The kind of file is recognised by its keys, among the model's `published_formats` and its own
    names. `{"state_dict": ...}` and its like are unwrapped, and the prefixes "_orig_mod.",
    "module." and "model." are removed in whatever order they come. Everything is checked before the
    first weight changes.

    Args:
        model: the model to fill; its device and dtypes stay.
        source: a file of `torch.save`, which is read without running code from it, or of
            safetensors; or its content.
        copy_missing: give a tensor that the file lacks the tensor that its format names in its
            place, instead of keeping it. (A Kinetics-400 file has no fragment tables; the paper
            starts them at zero, this starts them as the relative tables.)
        allow_shape_mismatch: keep, and report, a tensor whose shape in the file is another one,
            instead of raising. (What the published training code does without a word, for instance
            to every position table when FAST-VQA-M starts from Kinetics-400 weights.)

    Returns:
        Which tensors were loaded, copied, kept and dropped, and why; print it.

    Raises:
        PublishedWeightsError: a `ValueError`; the file is missing, unreadable or of an unknown
            kind, lacks a tensor, has one that is unknown, one of another shape, or one with NaN.
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
        if _is_safetensors(path):
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


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins with the length of a JSON header and the header, whatever its name."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


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
    published: Sequence[Format] = getattr(model, "published_formats", ())
    formats = (*published, own_names(model))
    left: Mapping[str, Tensor] | None = tensors
    while left is not None:
        for format_ in formats:
            if format_.recognises(left):
                return format_, left
        left = _without_prefix(left)
    known = "; ".join(format_.name for format_ in formats)
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
    copied = _copies(own, placed, fitting, format_) if copy_missing else {}
    absent = [name for name in own if name not in placed and name not in copied]
    kept = {name: reason for name in absent if (reason := format_.keeps(name)) is not None}
    problems = {
        "missing": [name for name in absent if name not in kept],
        "unknown": [name for name in placed if name not in own],
        "with NaN": [name for name, tensor in placed.items() if bool(tensor.isnan().any())],
        "of another shape": [] if allow_shape_mismatch else _pairs(mismatched),
    }
    if any(problems.values()):
        raise PublishedWeightsError(_problems(model, format_, problems))
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


def _copies(
    own: Iterable[str], placed: Mapping[str, Tensor], fitting: Mapping[str, Tensor], format_: Format
) -> dict[str, str]:
    """Names that the file lacks -> name of the file's tensor that they can take."""
    missing = ((name, format_.copies(name)) for name in own if name not in placed)
    return {name: source for name, source in missing if source is not None and source in fitting}


def _problems(model: nn.Module, format_: Format, problems: Mapping[str, list[str]]) -> str:
    found = "; ".join(
        f"{len(names)} {kind}: {_shown(names)}" for kind, names in problems.items() if names
    )
    return f"recognised as {format_.name}, but does not fit {type(model).__name__}: {found}"


def _by_reason(verb: str, reasons: Mapping[str, str]) -> Iterator[str]:
    """One line for all names with the same reason."""
    for reason in dict.fromkeys(reasons.values()):
        names = [name for name, its in reasons.items() if its == reason]
        yield f"  {verb} {len(names)} ({reason}): {_shown(names)}"


def _pairs(reasons: Mapping[str, str]) -> list[str]:
    return [f"{name} ({reason})" for name, reason in reasons.items()]


def _shown(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
