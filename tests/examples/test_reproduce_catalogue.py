"""Every number of the paper has its place, and the runs behind it are the paper's."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqa.datasets import SPECS
from vqa.reproduction.catalogue import REPORTED, catalogue
from vqa.reproduction.plan import check_labels, needed_runs, shard
from vqa.reproduction.runs import Sweep

EXAMPLES = Path(__file__).parents[2] / "examples"
EXHIBITS = catalogue()
PAPER = Sweep("paper")
MINI = Sweep("mini-ugc")


def numbers(value: object) -> list[float]:
    """Every number under a value of a JSON document."""
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers(item)]
    return [value] if isinstance(value, float) else []


def row(table: str, label: str):
    return [cell for cell in EXHIBITS[table].cells if cell.label == label]


def flags_of(table: str, label: str, sweep: Sweep = PAPER) -> tuple[str, ...]:
    (run,) = {run for cell in row(table, label) for run in sweep.runs(cell.training)}
    return run.flags


def given_flags(flags: tuple[str, ...], **expected: str) -> bool:
    return all(
        flags[flags.index(f"--{name.replace('_', '-')}") + 1] == value
        for name, value in expected.items()
    )


def test_it_has_every_table_and_figure_in_order():
    names = [f"table{number}" for number in range(1, 14)]
    names += [f"figure{number}" for number in range(1, 5)]

    assert list(EXHIBITS) == names


def test_every_reported_number_stands_in_its_row():
    reported = json.loads(REPORTED.read_text(encoding="utf-8"))
    keys = ("gamma", "weight_decay")  # these name a row and are no results

    for name, exhibit in EXHIBITS.items():
        if name.startswith("table"):
            labels = dict.fromkeys(cell.row for cell in exhibit.cells)
            for given, label in zip(reported[name]["rows"], labels, strict=True):
                results = {key: value for key, value in given.items() if key not in keys}
                made = [cell.reported for cell in row(name, label)]
                assert sorted(filter(None, made)) == sorted(numbers(results))


@pytest.mark.parametrize(
    ("table", "label", "column", "number"),
    [
        ("table1", "SAMA", "gap PLCC", 0.101),
        ("table5", "gamma 0.0001", "test SRCC", 0.884),
        ("table6", "SAMA + AWP", "LIVE-VQC SRCC", 0.834),
        ("table7", "FAST-VQA + AWP", "YouTube-UGC PLCC", 0.882),
        ("table8", "SAMA", "SPAQ SRCC", 0.925),
        ("table9", "gamma 0.01", "LSVQ_1080p PLCC", 0.705),
        ("table13", "gamma 0.001", "train PLCC", 0.946),
    ],
)
def test_reported_numbers_have_the_papers_heads(table, label, column, number):
    (found,) = (cell.reported for cell in row(table, label) if cell.column == column)

    assert found == number


def test_the_paper_says_where_its_numbers_are_from():
    assert "Yue et al." in json.loads(REPORTED.read_text(encoding="utf-8"))["source"]


def test_methods_of_other_papers_are_never_run():
    cited = [cell for cell in EXHIBITS["table6"].cells if cell.label.endswith("(cited)")]

    assert len({cell.label for cell in cited}) == 9
    assert all(cell.training is None for cell in cited)


def test_a_baseline_is_one_run_whichever_table_asks_for_it():
    asked = [
        ("table1", "FAST-VQA"),
        ("table2", "weight decay 0.05"),
        ("table3", "base"),
        ("table4", "gamma 0"),
        ("table5", "gamma 0"),
    ]

    runs = {
        run
        for name, label in asked
        for cell in row(name, label)
        for run in PAPER.runs(cell.training)
    }

    assert len(runs) == 1


def test_tables_6_and_9_share_their_runs():
    six = {
        run
        for label in ("FAST-VQA", "FAST-VQA + AWP")
        for cell in row("table6", label)
        for run in PAPER.runs(cell.training)
    }
    nine = {
        run
        for label in ("gamma 0", "gamma 0.0001")
        for cell in row("table9", label)
        for run in PAPER.runs(cell.training)
    }

    assert six == nine


@pytest.mark.parametrize(
    ("table", "label", "expected"),
    [
        ("table2", "weight decay 0.0005", {"weight_decay": "0.0005", "perturb": "none"}),
        ("table3", "TA", {"augmentation": "trivial", "weight_decay": "0.05"}),
        ("table4", "gamma 0.01", {"perturb": "rwp", "gamma": "0.01"}),
        ("table5", "gamma 1e-05", {"perturb": "awp", "gamma": "1e-05", "steps": "1"}),
        ("table6", "SimpleVQA + AWP", {"perturb": "awp", "gamma": "0.0001"}),
    ],
)
def test_rows_set_what_they_are_named_after(table, label, expected):
    assert given_flags(flags_of(table, label), **expected)


def test_fine_tuning_is_plain_and_starts_from_weights_trained_with_or_without_awp():
    for label, gamma in (("SAMA", None), ("SAMA + AWP", "0.0001")):
        for cell in row("table7", label):
            (run,) = PAPER.runs(cell.training)
            assert run.preset == "finetune"
            assert run.value("--perturb") == "none"
            assert run.start.dataset == "lsvq"
            assert run.start.value("--gamma") == gamma


def test_images_have_ten_splits_of_their_protocol():
    runs = PAPER.runs(row("table8", "SAMA")[0].training)

    assert [run.split for run in runs] == list(range(10))
    assert all(run.value("--protocol") == "sama" for run in runs)
    assert all(run.value("--official-parts") == "ignore" for run in runs)


def test_official_parts_are_one_split_whatever_is_asked_for():
    sweep = Sweep("paper", splits=(0, 3))

    assert {run.split for run in sweep.runs(row("table9", "gamma 0")[0].training)} == {0}
    assert {run.split for run in sweep.runs(row("table5", "gamma 0")[0].training)} == {0, 3}


@pytest.mark.parametrize("sweep", [PAPER, MINI], ids=["paper", "mini-ugc"])
def test_every_run_names_data_sets_that_there_are(sweep):
    for run in needed_runs(tuple(EXHIBITS.values()), sweep):
        assert {run.dataset, *run.also_test} <= set(SPECS)


def test_stand_ins_are_tiny_and_generated():
    for run in needed_runs(tuple(EXHIBITS.values()), MINI):
        assert run.preset == "tiny"
        assert run.dataset == ("mini-iqa" if run.script == "sama_iqa" else "mini-ugc")
        assert run.also_test == ()
        assert not {"--official-parts", "--protocol", "--no-train-score"} & set(run.flags)


def test_tiny_models_are_augmented_too():
    assert len(needed_runs((EXHIBITS["table3"],), MINI)) == 4


def test_every_seed_split_setting_and_file_is_another_run():
    training = row("table5", "gamma 0")[0].training
    data = "paper"
    sweeps = [
        PAPER,
        Sweep(data, seeds=(1,)),
        Sweep(data, splits=(1,)),
        Sweep(data, select_on="test"),
        Sweep(data, flags=("--epochs", "1")),
        Sweep(data, digests={"fast_vqa": "0a"}),
        Sweep(data, digests={"konvid-1k": "0a"}),
        Sweep("mini-ugc"),
    ]

    assert len({run.name for sweep in sweeps for run in sweep.runs(training)}) == len(sweeps)


def test_files_of_other_models_and_data_change_nothing():
    training = row("table5", "gamma 0")[0].training
    other = Sweep("paper", digests={"sama_vqa": "0a", "lsvq": "0b"})

    assert other.runs(training) == PAPER.runs(training)


def test_a_fine_tuned_run_depends_on_what_it_starts_from():
    training = row("table7", "FAST-VQA")[0].training
    other = Sweep("paper", digests={"fast_vqa": "0a"})

    assert other.runs(training)[0].name != PAPER.runs(training)[0].name


def test_labels_choose_rows():
    (run,) = needed_runs((EXHIBITS["table5"],), PAPER, ("gamma 0.001",))

    assert run.value("--gamma") == "0.001"


def test_an_unknown_label_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"only: expected some of 'gamma 0', .*, got 'gamma 7'"):
        check_labels((EXHIBITS["table5"],), ("gamma 7",))


def test_figures_have_curves_of_every_way_to_flatten():
    labels = {cell.label for cell in EXHIBITS["figure4"].cells}

    assert {"weight decay 0.5", "AuA", "RA", "TA", "gamma 0.01", "gamma 1e-05"} <= labels


@given(machines=st.integers(1, 12))
def test_machines_share_the_runs_and_keep_together_what_belongs_together(machines):
    runs = needed_runs((EXHIBITS["table6"], EXHIBITS["table7"]), PAPER)

    shares = [shard(runs, number, machines) for number in range(1, machines + 1)]

    assert sorted(run.name for own in shares for run in own) == sorted(run.name for run in runs)
    for own in shares:
        assert all(run.start is None or run.start in own for run in own)


def test_runs_come_after_those_they_start_from():
    runs = needed_runs((EXHIBITS["table7"],), PAPER)

    for place, run in enumerate(runs):
        assert run.start is None or run.start in runs[:place]
