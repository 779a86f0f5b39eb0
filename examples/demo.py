"""Watch adversarial weight perturbation shrink the train-test gap of a small FAST-VQA.

Builds mini-UGC (real .mp4 files, synthetic opinion scores, no download), trains the same model by
four methods from several seeds, and reports what came out. Run `python examples/demo.py --help` for
the settings. An interrupted demo goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import tyro

from vqa.demo.experiment import ExperimentSettings
from vqa.demo.parallel import run_all
from vqa.demo.report import by_method, conclusions, table, write_results
from vqa.demo.run_store import RunStore
from vqa.errors import expected_errors_in_one_line
from vqa.provenance import device_name, versions
from vqa.sampling.tiny_fast_vqa import LumaClips, load_clips
from vqa.synthetic.mini_ugc import (
    DEFAULT_FOLDER,
    PARTS,
    VERSION,
    MiniUgcSettings,
    Part,
    build_mini_ugc,
)
from vqa.training.landscape import curve_positions
from vqa.training.perturbation import Method

_REPOSITORY = Path(__file__).resolve().parents[1]
_PACKAGES = ("torch", "torchvision", "av", "numpy", "scipy", "scikit-image", "scikit-learn")


@dataclass(frozen=True)
class Demo:
    """Settings of the demo."""

    data_dir: Path = DEFAULT_FOLDER
    """Where the data set is built and kept."""
    output: Path = _REPOSITORY / "runs" / "demo"
    """Where results.json, results.csv, figure.png and the finished runs with checkpoints go."""
    methods: tuple[Method, ...] = ("plain", "rwp", "awp", "awp-previous")
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    processes: int = 2
    """Runs side by side, one core each; the results do not depend on it."""
    data: MiniUgcSettings = field(default_factory=MiniUgcSettings)
    experiment: ExperimentSettings = field(default_factory=ExperimentSettings)

    def __post_init__(self) -> None:
        for name, values in (("methods", self.methods), ("seeds", self.seeds)):
            # A seed that counts twice would make differences look surer than they are.
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}: expected one or more, each once, got {values}")


def main(demo: Demo) -> None:
    """Build the data, train every method from every seed, print and write the results."""
    began = time.perf_counter()
    built = build_mini_ugc(demo.data_dir, demo.data, demo.processes)
    clips = {part: load_clips(demo.data_dir / f"{part}.txt") for part in PARTS}
    print(_introduction(demo, clips, built))
    configuration = {
        "data": {"version": VERSION, **asdict(demo.data), "content": _digest(clips)},
        "experiment": asdict(demo.experiment),
        "versions": versions(_PACKAGES),
    }
    jobs = [(method, seed) for seed in demo.seeds for method in demo.methods]
    store = RunStore(demo.output / "finished", configuration)
    runs = by_method(run_all(jobs, demo.experiment, clips, store, demo.processes))
    print(f"\nMean ± spread over {len(demo.seeds)} seeds, and difference to plain seed by seed:\n")
    print(table(runs))
    print("\n" + "\n".join(conclusions(runs)))
    description = {
        "opinion_scores": "synthetic",
        "configuration": configuration,
        "seeds": demo.seeds,
        "processes": demo.processes,
        "device": device_name(torch.device("cpu")),
        "wall_seconds": time.perf_counter() - began,
    }
    positions = curve_positions(demo.experiment.landscape)
    paths = write_results(demo.output, runs, description, positions)
    checkpoints = [store.checkpoint(method, demo.seeds[0]) for method in demo.methods]
    print(f"\n{time.perf_counter() - began:.0f} s in all. Written:", *paths, sep="\n  ")
    print("and a checkpoint of every run. Of the first seed:", *checkpoints, sep="\n  ")
    print("`python examples/landscape.py --checkpoint FILE ...` draws the loss around them.")


def _digest(clips: Mapping[Part, LumaClips]) -> str:
    """Of every pixel and score, whatever files they came in."""
    digest = hashlib.sha256()
    for own in clips.values():
        digest.update(own.luma.numpy().tobytes())
        digest.update(own.scores.numpy().tobytes())
    return digest.hexdigest()


def _introduction(demo: Demo, clips: Mapping[Part, LumaClips], built: bool) -> str:
    sizes = ", ".join(f"{len(own.scores)} {part}" for part, own in clips.items())
    return (
        f"mini-UGC, {'just built' if built else 'found'} in {demo.data_dir}: {sizes} clips.\n"
        "Its opinion scores are synthetic: simulated raters, nobody has watched these clips."
    )


if __name__ == "__main__":
    with expected_errors_in_one_line():
        torch.set_num_threads(1)
        main(tyro.cli(Demo, description=__doc__))
