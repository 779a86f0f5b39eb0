"""Which samples train, choose and test."""

from pathlib import Path

import pytest
from toy_task import with_settings

from vqa.datasets import DataSet, Sample
from vqa.datasets.splits import split
from vqa.training.split_samples import Parts, parts_of, parts_of_splits


def dataset(parts=(None,) * 20):
    samples = tuple(Sample(Path(f"{n}"), float(n), part) for n, part in enumerate(parts))
    return DataSet("list", "video", samples, Path("labels.txt"))


OFFICIAL = ("train",) * 10 + ("validation",) * 4 + ("test",) * 4 + ("ood",) * 2


def numbers(samples):
    return [int(sample.path.name) for sample in samples]


def test_without_official_parts_the_protocol_splits():
    train, test = split(20, 3, "sama")

    parts = parts_of(dataset(), {}, with_settings(protocol="sama", select_on="test"), 3)

    assert numbers(parts.train) == list(train)
    assert numbers(parts.test) == list(test)
    assert parts.validation == ()


def test_validation_samples_are_set_aside_from_training_ones():
    parts = parts_of(dataset(), {}, with_settings(validation_share=0.25), 0)

    assert len(parts.validation) == 4
    train, test = split(20, 0, "paper")
    assert sorted(numbers(parts.train + parts.validation)) == sorted(train)
    assert numbers(parts.test) == list(test)


def test_official_parts_are_used_and_others_tested_too():
    parts = parts_of(dataset(OFFICIAL), {}, with_settings(), 0)

    assert numbers(parts.train) == list(range(10))
    assert numbers(parts.validation) == [10, 11, 12, 13]
    assert numbers(parts.test) == [14, 15, 16, 17]
    assert {name: numbers(own) for name, own in parts.also.items()} == {"list-ood": [18, 19]}


def test_official_parts_can_be_ignored():
    settings = with_settings(official_parts="ignore", select_on="test")

    parts = parts_of(dataset(OFFICIAL), {}, settings, 0)

    assert sorted(numbers(parts.train + parts.test)) == list(range(20))
    assert parts.also == {}


@pytest.mark.parametrize(
    ("select_on", "chooses"), [("validation", "validation"), ("test", "test"), ("last", None)]
)
def test_the_settings_say_what_chooses_the_epoch(select_on, chooses):
    settings = with_settings(select_on=select_on)
    parts = parts_of(dataset(OFFICIAL), {}, settings, 0)

    assert parts.chooses(settings) == (() if chooses is None else getattr(parts, chooses))


def samples(*scores: float) -> tuple[Sample, ...]:
    return tuple(Sample(Path(f"{n}.mp4"), score) for n, score in enumerate(scores))


@pytest.mark.parametrize(("count", "warned"), [(9, True), (10, False)])
def test_few_files_that_choose_the_epoch_are_counted(count, warned, capsys):
    parts = Parts(samples(1, 2), samples(*range(count)), samples(1, 2), {})

    assert len(parts.chooses(with_settings(select_on="validation"))) == count

    told = capsys.readouterr().out
    assert told.startswith("warning: validation: only 9 files choose") == warned
    assert told.count("\n") == warned


@pytest.mark.parametrize("select_on", ["validation", "test"])
def test_files_with_one_and_the_same_score_do_not_choose_the_epoch(select_on, capsys):
    parts = Parts(samples(1, 2), samples(*[3.0] * 12), samples(*[3.0] * 12), {})

    assert parts.chooses(with_settings(select_on=select_on)) == ()

    assert f"warning: {select_on}: all 12 files have the same" in capsys.readouterr().out


def test_several_splits_are_refused_where_the_parts_are_given():
    settings = with_settings(splits=(0, 1), protocol="sama")

    with pytest.raises(ValueError, match="splits: expected one, since list comes with parts"):
        parts_of_splits(dataset(OFFICIAL), {}, settings)
    assert list(parts_of_splits(dataset(), {}, settings)) == [0, 1]


def test_a_data_set_without_a_test_part_is_refused():
    with pytest.raises(ValueError, match=r"labels\.txt: expected at least two samples to test"):
        parts_of(dataset(("train",) * 5), {}, with_settings(), 0)
