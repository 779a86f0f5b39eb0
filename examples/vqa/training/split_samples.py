"""Which samples of a data set train, choose the epoch, and test."""

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
        """The samples whose scores choose the epoch; none if the last one counts."""
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
    set has none of its own and they are to choose the epoch.
    """
    others = {name: own.samples for name, own in also.items()}
    if settings.part == "all":
        return Parts((), (), dataset.samples, others)
    official = sorted({sample.part for sample in dataset.samples if sample.part is not None})
    validation: Samples = ()
    if official and settings.official_parts == "use":
        by_part = {
            part: tuple(sample for sample in dataset.samples if sample.part == part)
            for part in official
        }
        train, test = by_part.pop("train", ()), by_part.pop("test", ())
        validation = by_part.pop("validation", ())
        others = {f"{dataset.name}-{part}": own for part, own in by_part.items()} | others
    else:
        train_numbers, test_numbers = split(len(dataset.samples), number, settings.protocol)
        train = tuple(dataset.samples[index] for index in train_numbers)
        test = tuple(dataset.samples[index] for index in test_numbers)
    if not validation and settings.select_on == "validation":
        train, validation = hold_out_validation(train, settings.validation_share, settings.seed)
    for name, samples in (("train", train), ("test", test)):
        if len(samples) < 2:
            raise ValueError(
                f"{dataset.source}: expected at least two samples to {name}, got {len(samples)}"
            )
    return Parts(train, validation, test, others)


def parts_of_splits(
    dataset: DataSet, also: Mapping[str, DataSet], settings: Settings
) -> dict[int, Parts]:
    """All splits that the settings ask for, so that none is refused after hours of others."""
    # All files are the same in every split.
    numbers = settings.splits[:1] if settings.part == "all" else settings.splits
    official = any(sample.part is not None for sample in dataset.samples)
    if official and settings.official_parts == "use" and len(numbers) > 1:
        raise ValueError(
            f"splits: expected one, since {dataset.name} comes with parts (or --official-parts"
            f" ignore to draw them), got {numbers}"
        )
    return {number: parts_of(dataset, also, settings, number) for number in numbers}


def load_also(settings: Settings) -> dict[str, DataSet]:
    """The data sets of `also_test`, by name."""
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
