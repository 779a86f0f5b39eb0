"""The command that reproduces tables and figures, as a user runs it."""

import json

import pytest
from command_line import REPOSITORY, run_command
from finished_runs import document, write_results

from reproduce import Reproduce, main
from vqa.reproduction.catalogue import catalogue
from vqa.synthetic.mini_ugc import MiniUgcSettings, build_mini_ugc

EXHIBITS = catalogue()


def test_the_plan_lists_every_table_and_figure_and_nothing_is_run(tmp_path, capsys):
    main(Reproduce(("all",), data="mini-ugc", output=tmp_path / "out", dry_run=True))

    printed = capsys.readouterr().out
    for name, exhibit in EXHIBITS.items():
        assert f"  {name} " in printed
        assert exhibit.title in printed
    assert not (tmp_path / "out").exists()


def test_the_plan_of_the_papers_data_says_what_is_missing(tmp_path, capsys):
    main(Reproduce(("table5",), data_root=tmp_path, output=tmp_path / "out", dry_run=True))

    printed = capsys.readouterr().out
    assert f"Impossible, 5 runs: no data set konvid-1k in {tmp_path / 'konvid-1k'}" in printed
    assert "GPU hours" in printed
    assert "assumed, not measured" in printed


def test_epochs_are_chosen_as_published_for_the_papers_data_only(tmp_path, capsys):
    for data, part in (("paper", "test"), ("mini-ugc", "validation")):
        main(Reproduce(("table5",), data=data, output=tmp_path, data_root=tmp_path, dry_run=True))
        assert f"--select-on {part}" in capsys.readouterr().out


def test_a_report_of_finished_runs_runs_nothing(tmp_path, capsys):
    settings = {"data": "mini-ugc", "output": tmp_path / "out", "data_root": tmp_path / "data"}
    main(Reproduce(("table5",), dry_run=True, **settings))
    names = [word for word in capsys.readouterr().out.split() if word.startswith("fast_vqa-mini")]
    write_results(tmp_path / "out" / "mini-ugc" / "runs" / names[0], 0, document(test=0.71))

    main(Reproduce(("table5",), report_only=True, **settings))

    text = (tmp_path / "out" / "mini-ugc" / "table5.md").read_text(encoding="utf-8")
    assert "| gamma 0 | 0.900<br>*0.984* | 0.710<br>*0.872* |" in text
    assert "| gamma 0 | 0.900 / *0.984* | 0.710 / *0.872* |" in capsys.readouterr().out
    assert text.count("not measured") == 4 * 6
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exhibits": ("table14",)}, r"exhibits: expected some of table1, .* got 'table14'"),
        ({"exhibits": ()}, r"exhibits: expected some of table1"),
        ({"only": ("gamma 7",)}, r"only: expected some of 'gamma 0'"),
        ({"seeds": (1, 1)}, r"seeds: expected one or more, each once"),
        ({"splits": ()}, r"splits: expected one or more, each once"),
        ({"shard": "3/2"}, r"shard: expected I/N with I from 1 to N, got '3/2'"),
        ({"weights": ("fast=x",)}, r"weights: expected NAME=PATH with a NAME of fast_vqa"),
        ({"jobs": 0}, r"jobs, torchrun: expected from 1"),
    ],
)
def test_wrong_settings_are_named_before_anything_runs(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        main(
            Reproduce(
                **{
                    "exhibits": ("table5",),
                    "data": "mini-ugc",
                    "output": tmp_path,
                    "report_only": True,
                    **settings,
                }
            )
        )


def test_shards_divide_the_plan(tmp_path, capsys):
    every = []
    for shard in ("1/2", "2/2"):
        main(Reproduce(("table5",), data="mini-ugc", output=tmp_path, shard=shard, dry_run=True))
        printed = capsys.readouterr().out
        every += [word for word in printed.split() if word.startswith("fast_vqa-mini-ugc-")]

    assert len(every) == len(set(every)) == 5


@pytest.mark.slow
def test_a_cell_is_really_trained_and_reported_and_kept(tmp_path, capsys):
    small = MiniUgcSettings(photographs=1, train_clips=16, test_clips=4)
    build_mini_ugc(tmp_path / "data" / "mini-ugc", small)
    command = [REPOSITORY / "examples" / "reproduce.py"]
    command += ["table5", "--data", "mini-ugc", "--data-root", tmp_path / "data"]
    command += ["--output", tmp_path / "out", "--only", "gamma 0.01"]
    command += ["--settings=--epochs 2 --batch 4", "--splits", "0", "1"]

    ran = run_command(*command)

    assert ran.returncode == 0, ran.stdout + ran.stderr
    table = json.loads((tmp_path / "out" / "mini-ugc" / "table5.json").read_text(encoding="utf-8"))
    status = {row["label"]: row["cells"][0]["status"] for row in table["rows"]}
    assert [label for label, own in status.items() if own == "measured"] == ["gamma 0.01"]
    ((name, own),) = table["runs"].items()
    assert (tmp_path / "out" / "mini-ugc" / "runs" / name / "split-0" / "best.pt").is_file()
    assert (own["settings"]["epochs"], own["settings"]["gamma"]) == (2, 0.01)
    assert own["opinion_scores"] == "synthetic"

    again = Reproduce(
        ("table5", "figure3"),
        data="mini-ugc",
        data_root=tmp_path / "data",
        only=("gamma 0.01",),
        settings="--epochs 2 --batch 4",
        output=tmp_path / "out",
        report_only=True,
    )
    assert main(again) == ()
    assert "2 runs: 1 finished, 1 to run." in capsys.readouterr().out
    assert (tmp_path / "out" / "mini-ugc" / "figure3.png").exists()
