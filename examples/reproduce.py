"""Reproduce the paper's tables and figures: run what is missing, and report.

    python examples/reproduce.py table5 --data-root DATA --weights fast_vqa=swin_tiny.pth --dry-run
    python examples/reproduce.py table5 table9 --data-root DATA --weights fast_vqa=swin_tiny.pth
    python examples/reproduce.py all --data mini-ugc --jobs 2

The plan is printed first; `--dry-run` stops after it. Finished runs are kept, so the same command,
or one with more tables, seeds or splits, runs only what is new. DATA has one folder for each data
set, with its name. `mini-ugc` needs no data: it trains tiny models on generated clips
with synthetic opinion scores. That tests the scripts; the numbers do not compare with the paper.
"""

import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import tyro

from vqa.datasets import load_dataset
from vqa.errors import expected_errors_in_one_line
from vqa.reproduction.catalogue import Exhibit, catalogue
from vqa.reproduction.launch import Failure, Machine, execute
from vqa.reproduction.plan import check_labels, describe_plan, make_plan, needed_runs, shard, to_run
from vqa.reproduction.report import write_report
from vqa.reproduction.runs import GENERATED, DataName, Selection, Sweep
from vqa.reproduction.sources import Sources, read_roots, read_weights
from vqa.store import Store

_REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Reproduce:
    """What to reproduce, with what, and how."""

    exhibits: tyro.conf.Positional[tuple[str, ...]]
    """table1 to table13, figure1 to figure4, or all."""
    data: DataName = "paper"
    """The paper's data sets, or generated stand-ins on which tiny models run anywhere."""
    data_root: Path = _REPOSITORY / "data"
    """Folder with one folder for each data set: lsvq, konvid-1k, live-vqc, youtube-ugc, koniq-10k,
    spaq."""
    roots: tuple[str, ...] = ()
    """Data sets that lie elsewhere: NAME=PATH or NAME=PATH,ANNOTATIONS."""
    weights: tuple[str, ...] = ()
    """What models start from: fast_vqa=FILE, sama_vqa=FILE, sama_iqa=FILE, simple_vqa=FILE,
    slowfast=FILE."""
    features: Path | None = None
    """Folder for the features of SimpleVQA, hundreds of gigabytes for LSVQ. Default: beside the
    runs."""
    from_scratch: bool = False
    """Start from random weights if none are given (the paper never does)."""
    only: tuple[str, ...] = ()
    """Run only these rows or curves, given by their labels in the report."""
    seeds: tuple[int, ...] = (42,)
    splits: tuple[int, ...] | None = None
    """Splits to run. Default: the first of each data set, ten for Table 8."""
    select_on: Selection | None = None
    """Scores that choose the epoch. Default: `test` for the paper's data, as in the published code,
    which overestimates test scores; `validation` for mini-ugc."""
    settings: str = ""
    """More settings of every run, in one string: --settings="--epochs 5"."""
    machine: str = ""
    """Settings of every run that do not change results: --machine="--workers 8 --amp none"."""
    jobs: int = 1
    """Runs at the same time."""
    gpus: tuple[str, ...] = ()
    """Numbers of the GPUs, which the jobs share."""
    torchrun: int = 0
    """Processes (GPUs) of every run; 0: one, without torchrun."""
    shard: str = "1/1"
    """I/N: the share of machine I of N with the same output folder."""
    output: Path = _REPOSITORY / "runs" / "reproduce"
    """Folder for runs and reports, with a subfolder for each choice of `data`."""
    dry_run: bool = False
    """Show the plan and stop."""
    report_only: bool = False
    """Run nothing, report what is finished."""

    def __post_init__(self) -> None:
        for name in ("seeds", "splits"):
            values = getattr(self, name)
            if values is not None and (not values or len(set(values)) < len(values)):
                raise ValueError(f"{name}: expected one or more, each once, got {values}")


def main(settings: Reproduce) -> tuple[Failure, ...]:
    """Plan, run and report; the runs that failed."""
    exhibits = chosen(settings.exhibits)
    check_labels(exhibits, settings.only)
    sources, machine = _sources(settings), _machine(settings)
    sweep = _sweep(settings, exhibits, sources)
    store = Store(settings.output / settings.data / "runs")
    runs = shard(needed_runs(exhibits, sweep, settings.only), *_shard(settings.shard))
    plan = make_plan(runs, store, sources.missing)
    print(describe_plan(plan, exhibits, sweep, settings.only))
    if settings.dry_run:
        return ()
    failures = () if settings.report_only else execute(to_run(plan), sources, machine, store)
    command = {name: _plain(value) for name, value in asdict(settings).items()}
    folder = settings.output / settings.data
    paths = write_report(folder, exhibits, sweep, store, failures, command)
    report = paths[-1].read_text(encoding="utf-8").replace("<br>", " / ")
    print(f"\n{report}\nWritten:", *paths, sep="\n  ")
    return failures


def chosen(names: tuple[str, ...]) -> tuple[Exhibit, ...]:
    """Tables and figures by their names.

    Raises:
        ValueError: there is none of that name, or no name.
    """
    known = catalogue()
    for name in names or ("nothing",):
        if name != "all" and name not in known:
            raise ValueError(f"exhibits: expected some of {', '.join(known)} or all, got {name!r}")
    return tuple(own for name, own in known.items() if name in names or "all" in names)


def _sources(settings: Reproduce) -> Sources:
    roots, annotations = read_roots(settings.roots)
    weights = read_weights(settings.weights)
    features = settings.features or settings.output / settings.data / "features"
    root, scratch = settings.data_root, settings.from_scratch
    return Sources(root, roots, annotations, weights, features, scratch)


def _sweep(settings: Reproduce, exhibits: tuple[Exhibit, ...], sources: Sources) -> Sweep:
    default: Selection = "test" if settings.data == "paper" else "validation"
    flags = tuple(shlex.split(settings.settings))
    select_on = settings.select_on or default
    sweep = Sweep(settings.data, settings.seeds, settings.splits, select_on, flags)
    runs = needed_runs(exhibits, sweep)
    datasets = tuple(dict.fromkeys(name for run in runs for name in run.datasets))
    if not (settings.dry_run or settings.report_only):
        # Before several runs find it missing at a time, and so that what is planned is what runs.
        for dataset in datasets:
            if dataset in GENERATED:
                load_dataset(dataset, sources.root(dataset))
    return replace(sweep, digests=sources.digests(datasets))


def _shard(text: str) -> tuple[int, int]:
    number, slash, of = text.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise ValueError(f"shard: expected I/N with I from 1 to N, got {text!r}")
    return int(number), int(of)


def _machine(settings: Reproduce) -> Machine:
    flags = tuple(shlex.split(settings.machine))
    return Machine(settings.jobs, settings.torchrun, settings.gpus, flags)


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


if __name__ == "__main__":
    with expected_errors_in_one_line():
        raise SystemExit(1 if main(tyro.cli(Reproduce, description=__doc__)) else 0)
