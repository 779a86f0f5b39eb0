"""What was loaded beside what the published models were trained and tested with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vqa.datasets.samples import DataSet, Part, Sample
from vqa.datasets.specs import SPECS, Reference

# Extremes of the reference are given to one or two decimals.
_TOLERANCE = 0.06


def summary(dataset: DataSet) -> str:
    """Counts and score ranges of a data set and its parts, each beside its reference.

    What differs from every known version of the data set is marked with DIFFERS: correlations are
    then not comparable with published ones.
    """
    head = f"{dataset.name}: {_amount(dataset.samples, dataset.kind)}, {dataset.source}"
    if dataset.synthetic:
        head += "; the opinion scores are synthetic"
    if dataset.dropped:
        head += f"; {dataset.dropped} listed files are missing and left out"
    if dataset.unrated:
        head += f"; {dataset.unrated} listed files have no score (-1) and are left out"
    return "\n".join([head, *(f"  {line}" for line in _lines(dataset))])


def _lines(dataset: DataSet) -> Iterator[str]:
    references = SPECS[dataset.name].references
    parts = _parts(dataset, references)
    for part in parts:
        samples = [sample for sample in dataset.samples if part in (None, sample.part)]
        expected = [reference for reference in references if reference.part == part]
        name = part or "all"
        yield f"{name:<10} {_description(samples)}{_verdict(samples, expected)}"


def _parts(dataset: DataSet, references: Sequence[Reference]) -> list[Part | None]:
    """All samples if there is a reference for all or no part, then the parts that are named."""
    held = [sample.part for sample in dataset.samples]
    expected = [reference.part for reference in references]
    named = dict.fromkeys(part for part in held if part is not None)
    if named or None not in expected:
        named |= dict.fromkeys(part for part in expected if part is not None)
    whole = None in held or None in expected
    return [None, *named] if whole else [*named]


def _amount(samples: Sequence[Sample], kind: str) -> str:
    return f"{len(samples)} {kind}{'' if len(samples) == 1 else 's'}"


def _description(samples: Sequence[Sample]) -> str:
    if not samples:
        return f"{0:>6}"
    scores = [sample.score for sample in samples]
    return f"{len(samples):>6}  MOS {min(scores):.4g} .. {max(scores):.4g}"


def _verdict(samples: Sequence[Sample], expected: Sequence[Reference]) -> str:
    if not expected:
        return ""
    if agreeing := [reference for reference in expected if _agrees(samples, reference)]:
        return f"  as expected{_note(agreeing[0])}"
    return f"  DIFFERS: expected {' or '.join(map(_expectation, expected))}"


def _agrees(samples: Sequence[Sample], reference: Reference) -> bool:
    if len(samples) != reference.count or not samples:
        return False
    if reference.mos is None:
        return True
    low, high = reference.mos
    scores = [sample.score for sample in samples]
    if reference.scale:
        return low <= min(scores) and max(scores) <= high
    return abs(min(scores) - low) < _TOLERANCE and abs(max(scores) - high) < _TOLERANCE


def _expectation(reference: Reference) -> str:
    text = str(reference.count)
    if reference.mos is not None:
        low, high = reference.mos
        text += f" {'on the scale' if reference.scale else 'with MOS'} {low:g} .. {high:g}"
    return text + _note(reference)


def _note(reference: Reference) -> str:
    return f" ({reference.note})" if reference.note else ""
