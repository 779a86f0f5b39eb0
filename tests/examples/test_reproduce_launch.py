"""A plan says what there is to do, and doing it goes on whatever fails."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from finished_runs import FakeLauncher, finish, flag

from vqa.reproduction.catalogue import catalogue
from vqa.reproduction.launch import Machine, command, execute, launch, tail
from vqa.reproduction.plan import ASSUMED, describe_plan, make_plan, needed_runs, to_run
from vqa.reproduction.runs import Sweep
from vqa.reproduction.sources import Sources, read_roots, read_weights
from vqa.store import Store

EXHIBITS = catalogue()
PAPER, MINI = Sweep("paper"), Sweep("mini-ugc")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


@pytest.fixture
def sources(tmp_path):
    return Sources(tmp_path / "data")


def runs_of(*names: str, sweep: Sweep = MINI):
    return needed_runs([EXHIBITS[name] for name in names], sweep)


def states(runs, store, *more):
    return [item.state for item in make_plan(runs, store, *more)]


def test_finished_runs_are_not_run_again(store, sources):
    runs = runs_of("table5")
    launcher = FakeLauncher()
    execute(to_run(make_plan(runs, store)), sources, Machine(), store, launcher)

    assert len(launcher.commands) == 5
    assert to_run(make_plan(runs, store)) == ()


def test_interrupted_runs_go_on_in_their_folder(store, sources):
    first, *_ = runs_of("table5")
    (store.folder(first) / "split-0").mkdir(parents=True)
    (store.folder(first) / "split-0" / "last.pt").write_bytes(b"state")

    assert states([first], store) == ["interrupted"]
    assert to_run(make_plan([first], store)) == (first,)


def test_another_table_runs_only_what_is_new(store, sources):
    execute(runs_of("table5"), sources, Machine(), store, FakeLauncher())

    new = to_run(make_plan(runs_of("table4", "table5"), store))

    assert [run.value("--perturb") for run in new] == ["rwp"] * 4


def test_what_fails_does_not_stop_the_others(store, sources):
    launcher = FakeLauncher(lambda command: "0.01" in command)

    (failure,) = execute(runs_of("table5"), sources, Machine(), store, launcher)

    assert failure.run.value("--gamma") == "0.01"
    assert failure.why == "exit status 1"
    assert failure.tail.endswith("RuntimeError: out of memory")
    assert states(runs_of("table5"), store).count("finished") == 4


def test_a_failed_run_is_done_again_the_next_time(store, sources):
    runs = runs_of("table5")
    execute(runs, sources, Machine(), store, FakeLauncher(lambda command: "0.01" in command))

    assert execute(to_run(make_plan(runs, store)), sources, Machine(), store, FakeLauncher()) == ()
    assert set(states(runs, store)) == {"finished"}


def test_a_run_without_results_has_failed(store, sources):
    run, *_ = runs_of("table5")

    (failure,) = execute([run], sources, Machine(), store, lambda *_: 0)

    assert failure.why == "it wrote no results.json"


def test_results_of_something_else_are_a_failure_that_names_the_file(store, sources):
    run, *_ = runs_of("table5")

    def other(command, log, environment):
        (Path(flag(command, "--output")) / "results.json").write_text("{}", encoding="utf-8")
        return 0

    (failure,) = execute([run], sources, Machine(), store, other)

    assert str(store.folder(run) / "results.json") in failure.why


def test_fine_tuning_waits_for_its_weights_and_is_not_tried_without(store, sources):
    runs = runs_of("table7")
    launcher = FakeLauncher(
        lambda command: "sama_vqa" in command[1] and "--finetune-from" not in command
    )

    failures = execute(runs, sources, Machine(jobs=3), store, launcher)

    starts = ["--finetune-from" in command for command in launcher.commands]
    assert starts == sorted(starts)
    assert sum("is not finished" in failure.why for failure in failures) == 2
    for own in launcher.commands:
        if "--finetune-from" in own:
            assert Path(flag(own, "--finetune-from")).is_file()


def test_a_command_has_all_that_its_run_is(store, tmp_path):
    (run,) = needed_runs((EXHIBITS["table9"],), replace(PAPER, seeds=(7,)), ("gamma 0.001",))
    sources = Sources(
        tmp_path,
        roots={"live-vqc": Path("elsewhere")},
        annotations={"live-vqc": Path("list.txt")},
        weights={"fast_vqa": Path("swin.pth"), "sama_iqa": Path("other.pth")},
    )

    own = command(run, sources, Machine(flags=("--workers", "8")), store)

    assert own[:2] == [sys.executable, str(Path(own[1]))]
    assert Path(own[1]).name == "fast_vqa.py"
    assert own[2] == "paper"
    assert flag(own, "--dataset") == "lsvq"
    assert flag(own, "--data-root") == str(tmp_path / "lsvq")
    place = own.index("--also-test")
    assert own[place + 1 : place + 3] == [
        f"konvid-1k={tmp_path / 'konvid-1k'}",
        "live-vqc=elsewhere,list.txt",
    ]
    for name, value in {
        "--gamma": "0.001",
        "--seed": "7",
        "--splits": "0",
        "--pretrained": "swin.pth",
        "--workers": "8",
        "--output": str(store.folder(run)),
    }.items():
        assert flag(own, name) == value


def test_torchrun_starts_the_same_script(store, sources):
    run, *_ = runs_of("table5")

    alone = command(run, sources, Machine(), store)
    several = command(run, sources, Machine(torchrun=4), store)

    assert several[1:3] == ["-m", "torch.distributed.run"]
    assert flag(several, "--nproc-per-node") == "4"
    assert several[-len(alone) + 1 :] == alone[1:]


def test_jobs_divide_the_gpus(store, sources):
    launcher = FakeLauncher()
    machine = Machine(jobs=2, torchrun=2, gpus=("0", "1", "2", "3"))

    execute(runs_of("table5"), sources, machine, store, launcher)

    used = {own["CUDA_VISIBLE_DEVICES"] for own in launcher.environments}
    assert used <= {"0,1", "2,3"}
    assert len(launcher.environments) == 5


def test_too_few_gpus_are_an_error():
    with pytest.raises(ValueError, match="gpus: expected 2 for each of 2 jobs, got 0, 1, 2"):
        Machine(jobs=2, torchrun=2, gpus=("0", "1", "2"))


def test_a_launched_command_leaves_its_output_and_status(tmp_path):
    log = tmp_path / "log.txt"
    code = "import os, sys; print(os.environ['LENT']); sys.exit('broken')"

    status = launch([sys.executable, "-c", code], log, {"LENT": "gpu 3"})

    assert status == 1
    assert log.read_text(encoding="utf-8").startswith("$ ")
    assert tail(log, 2) == "gpu 3\nbroken"


def test_the_tail_of_a_progress_bar_is_its_last_state(tmp_path):
    (tmp_path / "log.txt").write_bytes(b"first\nepoch: 10%\repoch: 90%\r   \r\nstopped\n")

    assert tail(tmp_path / "log.txt", 2) == "epoch: 90%\nstopped"


def test_runs_without_data_or_weights_are_impossible_and_say_why(store, tmp_path):
    runs = runs_of("table7", sweep=PAPER)
    sources = Sources(tmp_path)
    (tmp_path / "konvid-1k").mkdir()

    plan = make_plan(runs, store, sources.missing)

    assert to_run(plan) == ()
    assert {item.why for item in plan} >= {f"no data set lsvq in {tmp_path / 'lsvq'}"}
    for name in ("lsvq", "live-vqc", "youtube-ugc"):
        (tmp_path / name).mkdir()
    assert {item.state for item in make_plan(runs, store, sources.missing)} == {"impossible"}
    assert "--weights fast_vqa=FILE" in sources.missing(
        next(r for r in runs if r.script == "fast_vqa")
    )
    scratch = replace(sources, from_scratch=True, weights={"slowfast": Path("slowfast.pyth")})
    assert set(states(runs, store, scratch.missing)) == {"to do"}


def test_simple_vqa_extracts_features_of_every_data_set_first(store, tmp_path):
    sources = Sources(tmp_path, weights={"slowfast": Path("slowfast.pyth")}, features=Path("space"))
    runs = needed_runs((EXHIBITS["table7"],), PAPER, ("SimpleVQA",))
    launcher = FakeLauncher()

    assert execute(runs, sources, Machine(), store, launcher) == ()

    extracted = [own for own in launcher.commands if own[1].endswith("simple_vqa_features.py")]
    assert launcher.commands[: len(extracted)] == extracted
    assert [flag(own, "--dataset") for own in extracted] == [
        *("lsvq", "konvid-1k", "live-vqc", "youtube-ugc")
    ]
    assert {flag(own, "--slowfast-weights") for own in extracted} == {"slowfast.pyth"}
    folders = {flag(own, "--dataset"): flag(own, "--output") for own in extracted}
    assert len(set(folders.values())) == 2  # YouTube-UGC has other key frames
    for own in launcher.commands[len(extracted) :]:
        assert flag(own, "--features") == folders[flag(own, "--dataset")]


def test_runs_whose_features_cannot_be_extracted_fail_and_others_go_on(store, tmp_path):
    runs = runs_of("table1", sweep=PAPER)
    launcher = FakeLauncher(lambda command: "simple_vqa_features" in command[1])

    (failure,) = execute(runs, Sources(tmp_path), Machine(), store, launcher)

    assert failure.run.script == "simple_vqa"
    assert failure.why == "no features of konvid-1k"
    assert "out of memory" in failure.tail
    assert states(runs, store).count("finished") == 2


def test_the_plan_says_what_features_will_take(store):
    text = describe_plan(make_plan(runs_of("table6", sweep=PAPER), store), [], PAPER)

    assert "SimpleVQA's features: lsvq, 38815 videos" in text
    assert "SimpleVQA" not in describe_plan(make_plan(runs_of("table1"), store), [], MINI)


def test_motion_features_of_other_weights_make_other_runs():
    name = "table1"
    other = replace(PAPER, digests={"slowfast": "0a"})

    differ = [
        a.script
        for a, b in zip(runs_of(name, sweep=PAPER), runs_of(name, sweep=other), strict=True)
        if a != b
    ]

    assert differ == ["simple_vqa"]


def test_fine_tuning_needs_no_data_of_a_run_that_is_finished(store, tmp_path):
    runs = needed_runs((EXHIBITS["table7"],), PAPER, ("FAST-VQA",))
    (tmp_path / "konvid-1k").mkdir()
    finish(store, runs[0])

    plan = make_plan(runs, store, Sources(tmp_path).missing)

    assert [item.run.dataset for item in plan if item.state == "to do"] == ["konvid-1k"]


def test_costs_are_called_assumed_until_a_run_of_the_kind_is_finished(store):
    runs = runs_of("table5")
    assert "assumed, not measured" in describe_plan(make_plan(runs, store), [], MINI)

    finish(store, runs[0], seconds=3600.0)

    plan = make_plan(runs, store)
    assert runs[0].passes == 1
    assert plan[1].run.passes == 2
    assert plan[1].hours == pytest.approx(2.0)
    text = describe_plan(plan, [EXHIBITS["table5"]], MINI)
    assert "To run: about 8 CPU hours" in text
    assert "from recorded times of runs of the same kind" in text
    assert "table5     1 of   5     8.0 h" in text


def test_assumed_costs_follow_from_the_sizes_of_the_data(store):
    run, *_ = needed_runs((EXHIBITS["table9"],), PAPER, ("gamma 0.001",))
    own = ASSUMED["fast_vqa"]
    steps = own.epochs * 28056 * 2 * own.train_seconds
    tests = (own.epochs * 7186 + 3573 + 1200 + 585) * own.test_seconds

    (item,) = make_plan([run], store)

    assert item.hours == pytest.approx((steps + tests) / 3600)


def test_broken_results_are_an_error_that_names_the_file(store):
    run, *_ = runs_of("table5")
    finish(store, run)
    (store.folder(run) / "results.json").write_text("{", encoding="utf-8")

    with pytest.raises(ValueError, match=r"results\.json: expected the results of a training"):
        make_plan([run], store)


def test_places_of_data_sets_are_read_with_their_annotations(tmp_path):
    (tmp_path / "own.csv").touch()

    roots, annotations = read_roots([f"spaq=images,{tmp_path / 'own.csv'}", "lsvq=videos"])

    assert roots == {"spaq": Path("images"), "lsvq": Path("videos")}
    assert annotations == {"spaq": tmp_path / "own.csv"}


@pytest.mark.parametrize("entry", ["spaq", "spaq=", "sqaq=images"])
def test_a_place_of_nothing_is_an_error(entry):
    with pytest.raises(ValueError, match=f"roots: expected NAME=PATH .*got '{entry}'"):
        read_roots([entry])


def test_weights_that_are_not_there_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="weights: expected a file, there is none"):
        read_weights([f"fast_vqa={tmp_path / 'swin.pth'}"])


def test_weights_with_other_contents_make_another_run(tmp_path):
    file = tmp_path / "swin.pth"
    names = []
    for contents in (b"first", b"second"):
        file.write_bytes(contents)
        digests = Sources(tmp_path, weights=read_weights([f"fast_vqa={file}"])).digests()
        names.append(runs_of("table5", sweep=replace(PAPER, digests=digests))[0].name)

    assert names[0] != names[1]


def test_another_place_or_other_labels_of_a_data_set_make_another_run(tmp_path):
    names = []
    for root, score in (("a", 1), ("a", 2), ("b", 2)):
        folder = tmp_path / root / "konvid-1k"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "labels.txt").write_text(f"x.mp4, -1, -1, {score}")
        digests = Sources(tmp_path / root).digests(["konvid-1k"])
        names.append(runs_of("table5", sweep=replace(PAPER, digests=digests))[0].name)

    assert len(set(names)) == 3


@pytest.mark.parametrize(
    "content", [b"other pixels, as many bytes", b"fewer"], ids=["time", "size"]
)
def test_other_media_files_of_the_same_names_make_another_run(tmp_path, content):
    folder = tmp_path / "konvid-1k"
    folder.mkdir()
    (folder / "labels.txt").write_text("x.mp4, -1, -1, 1\ny.mp4, -1, -1, 2")
    for name in ("x.mp4", "y.mp4"):
        (folder / name).write_bytes(b"these pixels, as many bytes")
        os.utime(folder / name, (1, 1))
    names = [own_name(tmp_path), own_name(tmp_path)]

    (folder / "y.mp4").write_bytes(content)

    assert names[0] == names[1] != own_name(tmp_path)


def own_name(root: Path) -> str:
    digests = Sources(root).digests(["konvid-1k"])
    return runs_of("table5", sweep=replace(PAPER, digests=digests))[0].name


def test_a_run_keeps_what_it_was_started_with(store, sources):
    run, *_ = runs_of("table5")
    execute([run], sources, Machine(), store, FakeLauncher())

    ((note, _, size),) = store.finished()

    assert note["run"]["flags"] == list(run.flags)
    assert Path(note["command"][1]).name == "fast_vqa.py"
    assert size > 0
    assert os.listdir(store.folder(run).parent) == [run.name]
