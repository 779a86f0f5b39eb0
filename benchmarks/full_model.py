"""What a step of the full model costs on an accelerator: plainly, with RWP, with AWP.

FAST-VQA is trained as `examples/fast_vqa.py paper` does, on random clips of its shape, which take
no reading. The methods take turns, step by step, so that a ratio within a round compares what ran
within moments. It prints and writes seconds of a step, clips per second and memory.

Needs the examples' packages.
"""

from __future__ import annotations

import gc
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import fast_vqa
from vqa.datasets import Sample
from vqa.provenance import provenance
from vqa.training.distributed import ProcessGroup
from vqa.training.loop import TrainingRun

Perturb = Literal["none", "rwp", "awp", "awp-update"]

METHODS: dict[str, Perturb] = {
    "plain": "none",
    "RWP": "rwp",
    "AWP": "awp",
    "AWP, update": "awp-update",
}


@dataclass(frozen=True)
class Benchmark:
    """Settings of the benchmark."""

    model: Literal["fast_vqa", "fast_vqa_m"] = "fast_vqa"
    amp: Literal["none", "bf16", "fp16"] = "none"
    """Mixed precision; the preset has none."""
    batch: int = fast_vqa.PAPER.batch
    clip: tuple[int, int, int] | None = None
    """Frames, height and width; those that the model is made for if not given."""
    rounds: int = 15
    """Steps of every method."""
    device: Literal["cuda", "cpu"] = "cuda"
    output: Path = Path(__file__).parent / "results" / "full-model-gpu.json"


@dataclass(frozen=True)
class Cost:
    """What steps of one method took."""

    seconds: tuple[float, float, float]
    """Quartiles."""
    times_plain: tuple[float, float, float]
    """Quartiles of ratios within a round."""
    clips_per_second: float
    held_bytes: int | None
    """Between steps: weights, gradients, their average, optimizer, and what a mode keeps."""
    peak_bytes: int | None
    """At most within a step, what is held included."""


def main(benchmark: Benchmark) -> None:
    """Measure, print a table and write the numbers."""
    if benchmark.device == "cuda" and not torch.cuda.is_available():
        sys.exit("device: expected one that torch sees, got 'cuda'")
    device = torch.device(benchmark.device)
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: _run(benchmark, method, Path(folder)) for name, method in METHODS.items()}
        memory = {name: _memory(benchmark, METHODS[name], Path(folder)) for name in METHODS}
        seconds = _take_turns(runs, benchmark.rounds)
    costs = {
        name: _cost(own, seconds["plain"], benchmark.batch, *memory[name])
        for name, own in seconds.items()
    }
    for name, cost in costs.items():
        _show(name, cost)
    settings = {k: v for k, v in asdict(benchmark).items() if k != "output"}
    document = {**provenance(device), **settings, "costs": {n: asdict(c) for n, c in costs.items()}}
    benchmark.output.parent.mkdir(parents=True, exist_ok=True)
    benchmark.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(f"\nWritten: {benchmark.output}")


def _run(benchmark: Benchmark, method: Perturb, folder: Path) -> Iterator[float]:
    """Seconds of one training step after the other."""
    run = _training(benchmark, method, folder)
    while True:
        for step in run.steps():
            yield step.seconds


def _training(benchmark: Benchmark, method: Perturb, folder: Path) -> TrainingRun:
    settings = replace(
        fast_vqa.PAPER,
        model=benchmark.model,
        perturb=method,
        data_root=folder,
        batch=benchmark.batch,
        amp=benchmark.amp,
        workers=0,
    )
    samples = [Sample(folder / f"{number}.mp4", float(number)) for number in range(benchmark.batch)]
    for sample in samples:
        sample.path.touch()
    usual = (32, 224, 224) if benchmark.model == "fast_vqa" else (16, 128, 128)
    shape = (1, 3, *(benchmark.clip or usual))
    clips = {sample.path: torch.randn(shape) for sample in samples}
    task = replace(fast_vqa.task(settings), read=lambda path, random: (clips[path],))
    return TrainingRun(task, settings, samples, 0, ProcessGroup(torch.device(benchmark.device)))


def _memory(
    benchmark: Benchmark, method: Perturb, folder: Path
) -> tuple[int, int] | tuple[None, None]:
    """Bytes held between steps, and at most within one, of a training alone."""
    if benchmark.device == "cpu":
        return None, None
    gc.collect()
    others = torch.cuda.memory_allocated()
    seconds = _run(benchmark, method, folder)
    next(seconds), next(seconds)
    held = torch.cuda.memory_allocated() - others
    torch.cuda.reset_peak_memory_stats()
    next(seconds)
    return held, torch.cuda.max_memory_allocated() - others


def _take_turns(runs: dict[str, Iterator[float]], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(-2, rounds):  # two to warm up
        for name, run in runs.items():
            took = next(run)
            if number >= 0:
                seconds[name].append(took)
    return seconds


def _cost(
    seconds: list[float], plain: list[float], batch: int, held: int | None, peak: int | None
) -> Cost:
    ratios = [own / other for own, other in zip(seconds, plain, strict=True)]
    return Cost(
        _quartiles(seconds), _quartiles(ratios), batch / statistics.median(seconds), held, peak
    )


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def _show(name: str, cost: Cost) -> None:
    low, median, high = cost.times_plain
    line = (
        f"{name:<12}{1e3 * cost.seconds[1]:10.1f} ms a step,"
        f" {median:.3f} ({low:.3f} ... {high:.3f}) times plain, {cost.clips_per_second:.4g} clips/s"
    )
    if cost.held_bytes is not None and cost.peak_bytes is not None:
        held, peak = (math.ceil(size / 2**20) for size in (cost.held_bytes, cost.peak_bytes))
        line += f", {held} MiB between steps, {peak} MiB at most"
    print(line)


if __name__ == "__main__":
    try:
        main(tyro.cli(Benchmark, description=__doc__))
    except torch.OutOfMemoryError as error:
        sys.exit(f"batch: the device's memory is too small, try --batch 8 or --amp bf16 ({error})")
