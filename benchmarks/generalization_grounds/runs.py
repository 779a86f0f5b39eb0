"""Many runs, each kept on disk when it is finished, so that an interrupted benchmark goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from benchmarks.generalization_grounds import biq2021, digits
from benchmarks.generalization_grounds.biq2021 import Biq2021, load_table
from benchmarks.generalization_grounds.digits import Digits
from benchmarks.generalization_grounds.ground import Ground, HeldOut, Outcome
from benchmarks.generalization_grounds.methods import Recipe
from benchmarks.generalization_grounds.mini_ugc import MiniUgc
from benchmarks.generalization_grounds.videval import Videval
from benchmarks.generalization_grounds.videval_tables import load_tables
from vqa.io.files import digest, replacing
from vqa.processes import process_pool, progress_bar

GroundName = Literal[
    "biq2021", "digits", "mini-ugc", "biq2021-sgd", "digits-sgd",
    "konvid-1k", "live-vqc", "youtube-ugc",
]  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One training by one recipe from one seed, scored on one part."""

    recipe: Recipe
    seed: int
    part: HeldOut


@cache
def build_ground(name: GroundName, mini_ugc: Path, videval: Path | None = None) -> Ground:
    """A ground with its data loaded.

    Args:
        name: which.
        mini_ugc: where that set lies or is built.
        videval: folder of a clone of vztu/VIDEVAL, for the grounds of videos.

    Raises:
        ValueError: there is no such folder, or it lacks a file.
    """
    if name == "biq2021":
        return Biq2021(load_table())
    if name == "biq2021-sgd":
        return Biq2021(load_table(), biq2021.SGD, grids=biq2021.SGD_GRIDS)
    if name == "digits":
        return Digits()
    if name == "digits-sgd":
        return Digits(digits.SGD, grids=digits.SGD_GRIDS)
    if name == "mini-ugc":
        return MiniUgc(mini_ugc)
    if videval is None:
        raise ValueError(f"videval: expected a clone of vztu/VIDEVAL for the ground {name}")
    return Videval(name, load_tables(videval))


@dataclass(frozen=True)
class Runner:
    """Runs jobs on one ground.

    Outcomes made with other settings of the ground or another torch are not picked up; an edited
    library or ground is not noticed, hence the version in a ground's description.
    """

    name: str
    build: Callable[[], Ground]
    """The ground, called wherever it is needed: cached, and a function that processes can send."""
    folder: Path
    processes: int = 1

    def outcomes(self, jobs: Sequence[Job], title: str) -> dict[Job, Outcome]:
        """Every job's outcome, from disk where it is finished already, otherwise run now."""
        known = {job: outcome for job in jobs if (outcome := self._load(job)) is not None}
        missing = [job for job in dict.fromkeys(jobs) if job not in known]
        if missing:
            with progress_bar(f"{self.name}, {title}", len(missing), "run") as bar:
                for job, outcome in self._run(missing):
                    known[job] = outcome
                    bar.update()
        return known

    def run(self, job: Job) -> tuple[Job, Outcome]:
        """Run one job here and keep what it gave."""
        outcome = self.build().run(job.recipe, job.seed, job.part)
        with replacing(self._path(job)) as unfinished:
            text = json.dumps({"job": asdict(job), "outcome": asdict(outcome)})
            unfinished.write_text(text, encoding="utf-8")
        return job, outcome

    def _run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        if self.processes == 1:
            yield from map(self.run, jobs)
            return
        with process_pool(self.processes) as pool:
            yield from pool.map(self.run, jobs)

    def _load(self, job: Job) -> Outcome | None:
        try:
            kept = json.loads(self._path(job).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return Outcome(**kept["outcome"])

    def _path(self, job: Job) -> Path:
        ground = self.build().describe()
        decides = {"ground": ground, "job": asdict(job), "torch": torch.__version__}
        return self.folder / self.name / f"{digest(decides)[:24]}.json"
