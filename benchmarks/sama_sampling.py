"""Milliseconds per clip of SAMA's sampler: ours, the published algorithm, and plain fragments.

The published algorithm resizes every whole frame to the size of its step and then cuts patches;
ours reads only the pixels that the patches need. All take the same 32 frames, in turn, in one
process, and a ratio is taken within a round, so that what slows the machine down for a while slows
all. The two samplers' outputs are compared on every workload.

Needs tyro besides torch.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch
import tyro
from torch import Tensor
from torch.nn.functional import interpolate

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from vqa.provenance import device_name
from vqa.sampling.sama_video import FRAMES_PER_STEP, Mosaics, SamaSampling, ladder

Sampler = Callable[[Tensor], Tensor]
GRID, PATCH = 7, 32


@dataclass(frozen=True)
class Benchmark:
    """Settings of the benchmark."""

    sizes: tuple[tuple[int, int], ...] = ((540, 960), (1080, 1920))
    """Height and width of the frames, one workload each."""
    threads: tuple[int, ...] = (1, 2)
    rounds: int = 5
    output: Path = Path(__file__).parent / "results" / "sama_sampling.json"


def ours(frames: Tensor) -> Tensor:
    """This repository."""
    size = (frames.shape[-2], frames.shape[-1])
    mosaics = Mosaics(SamaSampling(frames=frames.shape[1]), size, None)
    for step, pair in enumerate(torch.split(frames, FRAMES_PER_STEP, dim=1)):
        mosaics.sample(0, FRAMES_PER_STEP * step, pair)
    return mosaics.pixels[0]


def published(frames: Tensor) -> Tensor:
    """Whole frames resized, then cut; frames as [3, 2, H, W] batches and pixels from 0 to 1."""
    pixels = frames.float() / 255
    height, width = frames.shape[-2:]
    scales = ladder("sama", frames.shape[1], 1 / (min(height, width) / (GRID * PATCH)))
    steps = []
    for pair, scale in zip(torch.split(pixels, 2, dim=1), scales, strict=True):
        size = (round(height * scale), round(width * scale))
        resized = interpolate(pair, size=size, mode="bilinear")
        steps.append(cut(resized * 255))
    return torch.cat(steps, dim=1)


def plain_fragments(frames: Tensor) -> Tensor:
    """Patches of the frames as they are."""
    return cut(frames).float()


def cut(frames: Tensor) -> Tensor:
    """The middle of every cell, patch by patch."""
    height, width = frames.shape[-2:]
    side = GRID * PATCH
    mosaic = frames.new_empty(*frames.shape[:2], side, side)
    for i in range(GRID):
        for j in range(GRID):
            top, left = (
                min(length // GRID * cell, length - PATCH) + int(0.5 * (length // GRID - PATCH))
                for length, cell in ((height, i), (width, j))
            )
            patch = frames[..., top : top + PATCH, left : left + PATCH]
            rows, columns = slice(i * PATCH, (i + 1) * PATCH), slice(j * PATCH, (j + 1) * PATCH)
            mosaic[..., rows, columns] = patch
    return mosaic


SAMPLERS: dict[str, Sampler] = {
    "ours": ours,
    "published": published,
    "plain fragments": plain_fragments,
}


@dataclass(frozen=True)
class Result:
    """What one sampler did on one workload."""

    milliseconds: tuple[float, float, float]
    """Per clip: lower quartile, median, upper quartile."""
    processor_milliseconds: float
    """Median per clip, of all threads together: steadier than the clock on a busy machine."""
    times_ours: tuple[float, float, float]
    """Duration in units of ours in the same round: lower quartile, median, upper quartile."""


def measure(frames: Tensor, rounds: int) -> tuple[dict[str, Result], float]:
    """The samplers on one clip, in an order that rotates; and how far ours is from the published.

    Raises:
        AssertionError: ours differs from the published sampler by 1e-3 or more, on 0..255.
    """
    difference = (ours(frames) - published(frames)).abs().max().item()
    assert difference < 1e-3, f"ours differs from the published sampler by {difference}"
    names = list(SAMPLERS)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    processor: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1, rounds):  # one to warm up
        first = number % len(names)
        for name in [*names[first:], *names[:first]]:
            began, began_processor = time.perf_counter(), time.process_time()
            SAMPLERS[name](frames)
            if number >= 0:
                seconds[name].append(time.perf_counter() - began)
                processor[name].append(time.process_time() - began_processor)
    results = {}
    for name, own in seconds.items():
        ratios = [theirs / base for theirs, base in zip(own, seconds["ours"], strict=True)]
        low, median, high = (1000 * value for value in statistics.quantiles(own, n=4))
        ratio_low, ratio, ratio_high = statistics.quantiles(ratios, n=4)
        results[name] = Result(
            (low, median, high),
            1000 * statistics.median(processor[name]),
            (ratio_low, ratio, ratio_high),
        )
    return results, difference


def main(benchmark: Benchmark) -> None:
    """Measure, print a table and write the numbers."""
    workloads = {}
    for height, width in benchmark.sizes:
        # As a decoder gives them: channels last in memory.
        frames = torch.randint(0, 256, (32, height, width, 3), dtype=torch.uint8)
        for threads in benchmark.threads:
            torch.set_num_threads(threads)
            results, difference = measure(frames.permute(3, 0, 1, 2), benchmark.rounds)
            workload = f"32 x {height} x {width}, threads: {threads}"
            print(f"\n{workload}; largest difference on 0..255: {difference:.2g}")
            for name, result in results.items():
                (low, median, high), ratio = result.milliseconds, result.times_ours
                print(
                    f"{name:<16}{median:8.1f} ms a clip ({low:.1f} ... {high:.1f}),"
                    f"{result.processor_milliseconds:8.1f} ms of processor,"
                    f"{ratio[1]:7.2f} ({ratio[0]:.2f} ... {ratio[2]:.2f}) times ours"
                )
            workloads[workload] = {
                "largest_difference": difference,
                **{name: asdict(result) for name, result in results.items()},
            }
    document = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "device": device_name(torch.device("cpu")),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "versions": {"torch": version("torch")},
        "rounds": benchmark.rounds,
        "results": workloads,
    }
    benchmark.output.parent.mkdir(parents=True, exist_ok=True)
    benchmark.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(f"\nWritten: {benchmark.output}")


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
