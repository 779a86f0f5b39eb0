"""Which samples of a data set train, choose the epoch, and test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vqa.datasets import DataSet, Sample, load_dataset
from vqa.datasets.splits import hold_out_validation, split
from vqa.training.settings import Settings

Samples = tuple[Sample, ...]

_FEW = 10


@dataclass(frozen=True)
class Parts:
    """The samples of one split of a data set, and of other sets that are only tested on."""

    train: Samples
    validation: Samples
    test: Samples
    also: Mapping[str, Samples]

    def chooses(self, settings: Settings) -> Samples:
        """The samples whose scores choose the epoch; none if the last one counts.

        A line says so where that is because their scores are all the same, and where so few choose
        that chance does.
        """
        if settings.select_on == "last":
            return ()
        part: Samples = self.validation if settings.select_on == "validation" else self.test
        if len({sample.score for sample in part}) < 2:
            print(
                f"warning: {settings.select_on}: all {len(part)} files have the same opinion score,"
                " which cannot choose the epoch; the last one counts"
            )
            return ()
        if len(part) < _FEW:
            print(
                f"warning: {settings.select_on}: only {len(part)} files choose the epoch, which is"
                " a matter of chance; --select-on last does not choose"
            )
        return part


def parts_of(
    dataset: DataSet, also: Mapping[str, DataSet], settings: Settings, number: int
) -> Parts:
    """Split number `number` of a data set.

    Where samples carry official parts these are used, and parts other than train, validation and
    test are tested on, too. Validation samples are set aside from the training part where the data
    set has none of its own and they are to choose the epoch. Where the settings ask for everything
    to be tested, nothing is left out of the test part.

    Raises:
        ValueError: no sample to train or to test on.
    """
    if settings.part == "all":
        everything = dataset.samples
        return Parts((), (), everything, {name: own.samples for name, own in also.items()})
    official = {sample.part for sample in dataset.samples} - {None}
    if official and settings.official_parts == "use":
        by_part = {
            part: tuple(sample for sample in dataset.samples if sample.part == part)
            for part in sorted(filter(None, official))
        }
        train, test = by_part.pop("train", ()), by_part.pop("test", ())
        validation = by_part.pop("validation", ())
    else:
        train_numbers, test_numbers = split(len(dataset.samples), number, settings.protocol)
        train = tuple(dataset.samples[index] for index in train_numbers)
        test = tuple(dataset.samples[index] for index in test_numbers)
        by_part, validation = {}, ()
    if not validation and settings.select_on == "validation":
        train, validation = hold_out_validation(train, settings.validation_share, settings.seed)
    for name, samples in (("train", train), ("test", test)):
        if len(samples) < 2:
            raise ValueError(
                f"{dataset.source}: expected at least two samples to {name}, got {len(samples)}"
            )
    more = {f"{dataset.name}-{part}": samples for part, samples in by_part.items()}
    return Parts(train, validation, test, {**more, **{k: v.samples for k, v in also.items()}})


def parts_of_splits(
    dataset: DataSet, also: Mapping[str, DataSet], settings: Settings
) -> dict[int, Parts]:
    """The parts of all splits that the settings ask for, so that none fails after hours of others.

    Raises:
        ValueError: as `parts_of`, or there are official parts, which are the same in every split.
    """
    if settings.part == "all":  # the same in every split
        return {settings.splits[0]: parts_of(dataset, also, settings, settings.splits[0])}
    official = any(sample.part is not None for sample in dataset.samples)
    if official and settings.official_parts == "use" and len(settings.splits) > 1:
        raise ValueError(
            f"splits: expected one, since {dataset.name} comes with parts (or --official-parts"
            f" ignore to draw them), got {settings.splits}"
        )
    return {number: parts_of(dataset, also, settings, number) for number in settings.splits}


def load_also(settings: Settings) -> dict[str, DataSet]:
    """The data sets of `also_test`, by name.

    Raises:
        ValueError: an entry is not NAME=ROOT or NAME=ROOT,ANNOTATIONS, or a name comes twice.
        DatasetError: as `load_dataset`.
    """
    found: dict[str, DataSet] = {}
    for entry in settings.also_test:
        name, equals, place = entry.partition("=")
        root, comma, annotations = place.partition(",")
        if not (name and equals and root) or (comma and not annotations):
            raise ValueError(
                f"also_test: expected NAME=ROOT or NAME=ROOT,ANNOTATIONS, got {entry!r}"
            )
        if name in found:
            raise ValueError(f"also_test: expected every name once, got {name!r} twice")
        found[name] = load_dataset(
            name,
            Path(root),
            Path(annotations) if comma else None,
            drop_missing=settings.missing_files == "skip",
        )
    return found
