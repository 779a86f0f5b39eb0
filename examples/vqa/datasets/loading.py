"""A data set by name, and its summary beside what the published models were trained with."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from vqa.datasets.annotations import find_annotations, read_labels
from vqa.datasets.media import find_samples
from vqa.datasets.specs import SPECS, DataSet, Part, Reference
from vqa.datasets.tables import DatasetError
from vqa.io.files import kind_by_name


def load_dataset(
    name: str,
    root: Path,
    annotations: Path | None = None,
    *,
    score_column: str | None = None,
    drop_missing: bool = False,
) -> DataSet:
    """Load one of `SPECS`; nothing is decoded, but every row is checked, and that files are there.

    Names in annotation files are relative to `root` or to its usual sub-folders. `annotations` is
    an annotation file (official, or a four-column list), or a folder with the usual ones, `root` by
    default. `score_column` is another score than the usual one, such as MOS instead of MOS_zscore
    of KonIQ-10k; of several columns, such as anna,ben or rater*, the mean. With `drop_missing` rows
    whose file is missing are left out.
    """
    spec = SPECS.get(name)
    if spec is None:
        raise ValueError(f"name: expected one of {', '.join(SPECS)}, got {name!r}")
    if spec.build is not None:
        spec.build(root)
    if not root.is_dir():
        raise DatasetError(f"{root}: expected the folder of {name}, there is none")
    files = find_annotations(spec, root, annotations)
    source = next(iter(files.values()))
    labels = read_labels(spec, files, score_column)
    rated = [label for label in labels if label.score is not None]
    if not rated:
        raise DatasetError(f"{source}: expected scores, they are all unknown (-1)")
    samples, dropped = find_samples(spec, root, rated, drop_missing)
    images = all(kind_by_name(sample.path) == "image" for sample in samples)
    return DataSet(
        name=name,
        kind=spec.kind or ("image" if images else "video"),
        samples=samples,
        source=source,
        synthetic=spec.build is not None,
        dropped=dropped,
        unrated=len(labels) - len(rated),
    )


def summary(dataset: DataSet) -> str:
    """Counts and score ranges of a data set and its parts, each beside its reference.

    Where it DIFFERS from all of them, correlations do not compare with published ones.
    """
    count = len(dataset.samples)
    head = f"{dataset.name}: {count} {dataset.kind}{'' if count == 1 else 's'}, {dataset.source}"
    if dataset.synthetic:
        head += "; the opinion scores are synthetic"
    if dataset.dropped:
        head += f"; {dataset.dropped} listed files are missing and left out"
    if dataset.unrated:
        head += f"; {dataset.unrated} listed files have no score (-1) and are left out"
    return "\n".join([head, *(f"  {line}" for line in _lines(dataset))])


def _lines(dataset: DataSet) -> Iterator[str]:
    references = SPECS[dataset.name].references
    for part in _parts(dataset, references):
        scores = [own.score for own in dataset.samples if part in (None, own.part)]
        expected = [reference for reference in references if reference.part == part]
        extremes = f"  MOS {min(scores):.4g} .. {max(scores):.4g}" if scores else ""
        yield f"{part or 'all':<10} {len(scores):>6}{extremes}{_verdict(scores, expected)}"


def _parts(dataset: DataSet, references: Sequence[Reference]) -> list[Part | None]:
    """All samples if there is a reference for all or no part, then the parts that are named."""
    held = [sample.part for sample in dataset.samples]
    expected = [reference.part for reference in references]
    named = dict.fromkeys(part for part in held if part is not None)
    if named or None not in expected:
        named |= dict.fromkeys(part for part in expected if part is not None)
    whole = None in held or None in expected
    return [None, *named] if whole else [*named]


def _verdict(scores: Sequence[float], expected: Sequence[Reference]) -> str:
    if not expected:
        return ""
    for reference in expected:
        if _agrees(scores, reference):
            return f"  as expected{_note(reference)}"
    return f"  DIFFERS: expected {' or '.join(map(_expectation, expected))}"


def _agrees(scores: Sequence[float], reference: Reference) -> bool:
    if len(scores) != reference.count or not scores:
        return False
    if reference.mos is None:
        return True
    low, high = reference.mos
    if reference.scale:
        return low <= min(scores) and max(scores) <= high
    # The extremes of references are given to one or two decimals.
    return abs(min(scores) - low) < 0.06 and abs(max(scores) - high) < 0.06


def _expectation(reference: Reference) -> str:
    text = str(reference.count)
    if reference.mos is not None:
        low, high = reference.mos
        text += f" {'on the scale' if reference.scale else 'with MOS'} {low:g} .. {high:g}"
    return text + _note(reference)


def _note(reference: Reference) -> str:
    return f" ({reference.note})" if reference.note else ""
