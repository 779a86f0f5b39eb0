"""Reports show what was measured beside what the paper reports, and nothing else."""

import csv
import json
from dataclasses import replace

import pytest
from finished_runs import FakeLauncher, finish

from vqa.reproduction.catalogue import catalogue
from vqa.reproduction.launch import Machine, execute
from vqa.reproduction.plan import needed_runs
from vqa.reproduction.report import write_report
from vqa.reproduction.runs import Sweep
from vqa.reproduction.sources import Sources
from vqa.store import Store

EXHIBITS = catalogue()
PAPER, MINI = Sweep("paper"), Sweep("mini-ugc")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


def report(name, sweep, store, tmp_path, **more):
    write_report(tmp_path / "out", [EXHIBITS[name]], sweep, store, **more)
    return (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def document(name, tmp_path):
    return json.loads((tmp_path / "out" / f"{name}.json").read_text(encoding="utf-8"))


def cells(name, label, tmp_path):
    rows = {row["label"]: row["cells"] for row in document(name, tmp_path)["rows"]}
    return {cell["column"]: cell for cell in rows[label]}


def finish_row(name, label, sweep, store, values):
    runs = needed_runs((EXHIBITS[name],), sweep, (label,))
    for run, value in zip(runs, values, strict=True):
        finish(store, run, test=value)
    return runs


def markdown_row(text: str, label: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_measured_stands_beside_reported_with_the_difference(store, tmp_path):
    finish_row("table5", "gamma 0.001", PAPER, store, [0.85])

    text = report("table5", PAPER, store, tmp_path)

    assert markdown_row(text, "gamma 0.001")[1] == "0.850 (-0.032)<br>*0.882*"
    assert markdown_row(text, "gamma 0.001")[2] == "0.050 (-0.040)<br>*0.090*"


def test_cells_not_measured_are_marked(store, tmp_path):
    text = report("table5", PAPER, store, tmp_path)

    assert markdown_row(text, "gamma 0")[0] == "not measured<br>*0.984*"
    assert cells("table5", "gamma 0", tmp_path)["test SRCC"]["status"] == "not measured"
    assert cells("table5", "gamma 0", tmp_path)["test SRCC"]["measured"]["mean"] is None


def test_seeds_have_mean_and_spread(store, tmp_path):
    sweep = replace(PAPER, seeds=(1, 2, 3))
    finish_row("table5", "gamma 0.001", sweep, store, [0.84, 0.85, 0.86])

    text = report("table5", sweep, store, tmp_path)

    assert markdown_row(text, "gamma 0.001")[1] == "0.850 ± 0.010 (-0.032)<br>*0.882*"
    assert "Mean ± standard deviation over seeds 1, 2, 3." in text


def test_a_seed_counts_when_it_is_complete(store, tmp_path):
    sweep = replace(PAPER, seeds=(1, 2), splits=(0, 1, 2))
    runs = needed_runs((EXHIBITS["table5"],), sweep, ("gamma 0.001",))
    for run, value in zip(runs[:5], (0.7, 0.9, 0.8, 0.1, 0.1), strict=True):
        finish(store, run, test=value)

    report("table5", sweep, store, tmp_path)

    found = cells("table5", "gamma 0.001", tmp_path)["test SRCC"]["measured"]
    assert found["seeds"] == [1]
    assert found["values"] == [0.8]  # the median over splits
    assert (len(found["runs"]), found["needed_runs"]) == (5, 6)


def test_an_incomplete_cell_says_how_far_it_is(store, tmp_path):
    sweep = replace(PAPER, splits=(0, 1))
    runs = needed_runs((EXHIBITS["table5"],), sweep, ("gamma 0.001",))
    finish(store, runs[0])

    text = report("table5", sweep, store, tmp_path)

    assert markdown_row(text, "gamma 0.001")[0] == "not measured (1/2 runs)<br>*0.972*"


def test_cited_methods_have_the_papers_number_only(store, tmp_path):
    text = report("table7", PAPER, store, tmp_path)

    assert markdown_row(text, "PVQ (cited)") == [
        "*0.791*",
        "*0.786*",
        "*0.827*",
        "*0.837*",
        "*-*",
        "*-*",
    ]
    assert cells("table7", "PVQ (cited)", tmp_path)["KoNViD-1k SRCC"]["status"] == "cited"


def test_stand_ins_are_never_held_against_the_paper(store, tmp_path):
    finish_row("table5", "gamma 0.001", MINI, store, [0.7])

    text = report("table5", MINI, store, tmp_path)

    assert "mini-UGC, synthetic scores: not comparable with the paper's column" in text
    assert markdown_row(text, "gamma 0.001")[1] == "0.700<br>*0.882*"
    assert cells("table5", "gamma 0.001", tmp_path)["test SRCC"]["difference"] is None
    assert "mini-UGC's part `ood`" in text


def test_other_data_sets_are_read_from_their_part(store, tmp_path):
    (run,) = needed_runs((EXHIBITS["table9"],), PAPER, ("gamma 0.001",))
    also = {"lsvq-1080p": 0.75, "konvid-1k": 0.86, "live-vqc": 0.82}
    finish(store, run, test=0.87, also=also)
    (tiny,) = needed_runs((EXHIBITS["table9"],), MINI, ("gamma 0.001",))
    finish(store, tiny, test=0.6, also={"mini-ugc-ood": 0.5})

    for sweep, expected in ((PAPER, (0.87, 0.75, 0.86, 0.82)), (MINI, (0.6, 0.5, 0.5, 0.5))):
        report("table9", sweep, store, tmp_path)
        found = cells("table9", "gamma 0.001", tmp_path)
        means = [
            found[f"{name} SRCC"]["measured"]["mean"]
            for name in ("LSVQ_test", "LSVQ_1080p", "KoNViD-1k", "LIVE-VQC")
        ]
        assert means == pytest.approx(expected)


def test_every_measured_cell_carries_its_run_seed_and_revision(store, tmp_path):
    (run,) = finish_row("table5", "gamma 0.001", PAPER, store, [0.85])

    report("table5", PAPER, store, tmp_path)

    (name,) = cells("table5", "gamma 0.001", tmp_path)["test SRCC"]["measured"]["runs"]
    origin = document("table5", tmp_path)["runs"][name]
    assert name == run.name
    assert origin["seed"] == 42
    assert origin["settings"] == {"gamma": 0.0}
    assert origin["provenance"]["git_revision"] == "abc123"


def test_the_csv_has_a_row_for_every_cell(store, tmp_path):
    finish_row("table5", "gamma 0.001", PAPER, store, [0.85])
    report("table5", PAPER, store, tmp_path)

    with (tmp_path / "out" / "table5.csv").open(encoding="utf-8", newline="") as file:
        rows = {(row["row"], row["column"]): row for row in csv.DictReader(file)}

    assert len(rows) == 5 * 6
    measured = rows["gamma 0.001", "test SRCC"]
    assert float(measured["measured_mean"]) == 0.85
    assert float(measured["difference"]) == pytest.approx(-0.032)
    assert (measured["seeds"], measured["revisions"]) == ("42", "abc123")
    assert rows["gamma 0", "test SRCC"]["measured_mean"] == ""


def test_a_score_that_was_not_defined_is_called_so(store, tmp_path):
    (run,) = needed_runs((EXHIBITS["table9"],), PAPER, ("gamma 0.001",))
    finish(store, run, test=None, also=dict.fromkeys(("lsvq-1080p", "konvid-1k", "live-vqc"), 0.5))

    text = report("table9", PAPER, store, tmp_path)

    assert markdown_row(text, "gamma 0.001")[0] == "undefined<br>*0.879*"


def test_missing_scores_are_an_error_that_names_file_and_part(store, tmp_path):
    finish_row("table9", "gamma 0.001", PAPER, store, [0.8])

    with pytest.raises(ValueError, match=r"results\.json: expected srcc of 'lsvq-1080p'"):
        report("table9", PAPER, store, tmp_path)


def test_failed_runs_are_reported_with_the_end_of_their_log(store, tmp_path):
    runs = needed_runs((EXHIBITS["table5"],), MINI)
    failures = execute(
        runs, Sources(tmp_path), Machine(), store, FakeLauncher(lambda command: "0.01" in command)
    )

    text = report("table5", MINI, store, tmp_path, failures=failures)

    assert "## Failed runs" in text
    assert "RuntimeError: out of memory" in text
    assert markdown_row(text, "gamma 0.01")[0].startswith("not measured")


def test_a_figure_is_drawn_of_the_curves_that_there_are(store, tmp_path):
    runs = needed_runs((EXHIBITS["figure3"],), PAPER, ("gamma 0", "gamma 0.001"))
    for run in runs:
        finish(store, run)

    text = report("figure3", PAPER, store, tmp_path)

    assert "(figure3.png)" in text
    assert (tmp_path / "out" / "figure3.png").read_bytes()[:4] == b"\x89PNG"
    assert markdown_row(text, "AWP: gamma 0.001") == ["0.250", "0.100", "0.800"]
    assert markdown_row(text, "AWP: gamma 0.01") == ["not measured"] * 3


def test_nothing_is_drawn_of_nothing(store, tmp_path):
    text = report("figure1", PAPER, store, tmp_path)

    assert "figure1.png" not in text
    assert not (tmp_path / "out" / "figure1.png").exists()
