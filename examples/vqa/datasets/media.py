"""From the names in annotation files to the media files on disk."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from vqa.datasets.annotations import Label
from vqa.datasets.specs import DataSetSpec, Sample
from vqa.datasets.tables import DatasetError

_SHOWN = 10

# `list_files`, which asks once per folder rather than once per file for as long as it is cached.
Listing = Callable[[Path], Mapping[str, str]]


def find_file(path: Path, listing: Listing) -> Path | None:
    """The file itself, or the one that differs in the case of the extension only."""
    names = listing(path.parent)
    name = names.get(path.name) or names.get(_fold_extension(path.name))
    return None if name is None else path.with_name(name)


def find_samples(
    spec: DataSetSpec, root: Path, labels: Sequence[Label], drop_missing: bool
) -> tuple[tuple[Sample, ...], int]:
    """The samples whose files are there, and how many were left out because theirs are not."""
    listing = cache(list_files)
    missing: list[Label] = []
    rows: dict[Path, Label] = {}
    samples: list[Sample] = []
    for label in labels:
        tried = (find_file(root / place, listing) for place in _candidates(spec, label.name))
        path = next(filter(None, tried), None)
        if path is None:
            missing.append(label)
        elif path in rows:
            raise DatasetError(
                f"{label.place}: expected every file once, {path} is in {rows[path].place} too"
            )
        elif label.score is not None:
            rows[path] = label
            samples.append(Sample(path, label.score, label.part))
    if missing and (not drop_missing or not samples):
        raise DatasetError(_missing_message(spec, root, missing, len(labels), listing))
    return tuple(samples), len(missing)


def _candidates(spec: DataSetSpec, name: str) -> Iterator[str]:
    name = os.path.expanduser(name.replace("\\", "/"))
    identifier = PurePosixPath(name).name.split(".")[0].split("_")[0]
    for folder in spec.folders:
        for file in spec.files:
            yield str(PurePosixPath(folder) / file.format(name=name, id=identifier))


def _missing_message(
    spec: DataSetSpec, root: Path, missing: Sequence[Label], listed: int, listing: Listing
) -> str:
    tried = " or ".join(dict.fromkeys(_candidates(spec, missing[0].name)))
    lines = [
        f"{spec.name}: {len(missing)} of {listed} listed files are missing under {root}"
        f" (the first is expected as {tried}):"
    ]
    for label in missing[:_SHOWN]:
        places = _candidates(spec, label.name)
        same = any(_has_other_form(root / place, listing) for place in places)
        note = "; a file is there whose name differs only in its Unicode form" if same else ""
        lines.append(f"  {label.name} ({label.place}){note}")
    if len(missing) > _SHOWN:
        lines.append(f"  and {len(missing) - _SHOWN} more")
    return "\n".join(lines)


def _has_other_form(path: Path, listing: Listing) -> bool:
    """Whether there is a file whose name differs in its Unicode form only (NFC, NFD)."""
    form = normalize("NFC", path.name)
    return any(normalize("NFC", name) == form for name in listing(path.parent))


def list_files(folder: Path) -> dict[str, str]:
    """The names of the files in a folder, by every name that they answer to; exact names win."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if _is_file(entry)]
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {_fold_extension(name): name for name in names} | {name: name for name in names}


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False


def _fold_extension(name: str) -> str:
    stem, extension = os.path.splitext(name)
    return stem + extension.lower()
