"""Clips per second from H.264 files, ours and decord with a patch loop, and memory of our readers.

Both give FAST-VQA's normalised fragments of the same frames at the same places, in turn, on one
thread of one process. A ratio is taken within a round, so that what slows the machine down for a
while slows both sides. The outputs must agree up to the rounding of two colour conversions.

Files are made in the run: a camera moves over a real photograph, with a key frame every 250 frames
(what encoders do by default) and every 25. `training` is one random clip of 32 frames, `testing`
four clips. The profile takes the time of the parts of one reading.

Memory is what the largest amount that a fresh process ever held grows by while one file is read:
frames are cut as they are decoded, so that it follows the size of a frame and of the clip, not the
length of the file. Linux counts it.

What the training stack costs is the time of `fast_vqa.py tiny` that is not spent in its steps:
reading what is kept in memory of the files, and choosing the epoch, saving and logging. Reading the
files for the first time counts apart.

Needs tyro and scikit-image; decord takes part if it is installed.
"""

from __future__ import annotations

import cProfile
import importlib.util
import json
import os
import platform
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import av
import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import fast_vqa
from vqa.datasets import load_dataset
from vqa.io.files import write_json
from vqa.io.video import Video, VideoInfo
from vqa.provenance import device_name
from vqa.sampling.fast_vqa import (
    DEVIATION,
    FAST_VQA,
    MEAN,
    FastVqaSampling,
    read_clips,
)
from vqa.sampling.fragments import draw_offsets
from vqa.sampling.frames import draw_frames
from vqa.sampling.sama_video import SamaSampling, read_sama_clips
from vqa.sampling.tiny_fast_vqa import FragmentSampling, read_planes
from vqa.synthetic.mini_ugc import DEFAULT_FOLDER
from vqa.synthetic.photographs import PHOTOGRAPHS, load_photograph
from vqa.training.distributed import ProcessGroup
from vqa.training.loop import TrainingRun, fit
from vqa.training.split_samples import parts_of

Use = Literal["training", "testing"]
Reader = Callable[["Task"], Tensor]

SAMPLINGS: dict[Use, FastVqaSampling] = {
    "training": FAST_VQA,
    "testing": replace(FAST_VQA, clips=4),
}
FRAME_RATE = 25


@dataclass(frozen=True)
class Benchmark:
    """Settings of the benchmark."""

    heights: tuple[int, ...] = (540, 1080)
    key_intervals: tuple[int, ...] = (250, 25)
    seconds: int = 8
    """Length of the videos."""
    rounds: int = 5
    measures: tuple[Literal["speed", "memory", "stack"], ...] = ("speed", "memory", "stack")
    """What is not measured again stays in the output as it is."""
    memory_heights: tuple[int, ...] = (720, 2160)
    memory_seconds: tuple[int, ...] = (1, 4)
    """Lengths of the videos whose reading's memory is measured."""
    stack_epochs: int = 10
    """Of every training whose stack is measured."""
    mini_ugc: Path = DEFAULT_FOLDER
    """Where the set that is trained on lies, or is built."""
    output: Path = Path(__file__).parent / "results" / "pipeline.json"


@dataclass(frozen=True)
class Task:
    """One reading: which file, how, and from which random numbers."""

    path: Path
    info: VideoInfo
    sampling: FastVqaSampling
    seed: int

    def draw(self) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Frame numbers [clips, frames] and patch offsets, as `read_clips` draws them."""
        generator = torch.Generator().manual_seed(self.seed)
        indices = draw_frames(self.info.frames, self.sampling, "fixed", generator)
        size = (self.info.height, self.info.width)
        return indices, draw_offsets(self.sampling, size, 1, self.sampling.clips, generator)


def ours(task: Task) -> Tensor:
    """This project."""
    generator = torch.Generator().manual_seed(task.seed)
    return read_clips(task.path, task.sampling, generator)


def decord_and_patch_loop(task: Task) -> Tensor:
    """What one writes by hand: decord's batch of frames, then patch by patch."""
    import decord  # type: ignore[import-untyped]

    indices, offsets = task.draw()
    reader = decord.VideoReader(str(task.path), num_threads=1)
    numbers = sorted(set(indices.flatten().tolist()))
    frames = torch.from_numpy(reader.get_batch(numbers).asnumpy()).permute(3, 0, 1, 2)
    place = {number: index for index, number in enumerate(numbers)}
    mean, deviation = (torch.tensor(v).view(3, 1, 1, 1) for v in (MEAN, DEVIATION))
    clips = []
    for clip, row in enumerate(indices.tolist()):
        taken = frames[:, [place[number] for number in row]]
        rows, columns = (offset[0, :, :, clip].tolist() for offset in offsets)
        mosaic = patch_loop(taken, rows, columns, task.sampling)
        clips.append((mosaic.float() - mean) / deviation)
    return torch.stack(clips)


def patch_loop(
    frames: Tensor, rows: list[list[int]], columns: list[list[int]], sampling: FastVqaSampling
) -> Tensor:
    """Fragments [C, T, side, side] of frames [C, T, H, W], one patch after the other."""
    grid, patch = sampling.grid, sampling.patch
    height, width = frames.shape[-2:]
    mosaic = frames.new_empty(*frames.shape[:2], grid * patch, grid * patch)
    for i in range(grid):
        for j in range(grid):
            y = min(height // grid * i, height - patch) + rows[i][j]
            x = min(width // grid * j, width - patch) + columns[i][j]
            cell = frames[:, :, y : y + patch, x : x + patch]
            mosaic[:, :, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch] = cell
    return mosaic


def competitors() -> dict[str, Reader]:
    """Those that are installed."""
    found: dict[str, Reader] = {"torch-awp": ours}
    if importlib.util.find_spec("decord"):
        found["decord and patch loop"] = decord_and_patch_loop
    return found


@dataclass(frozen=True)
class Result:
    """What one competitor did on one kind of task."""

    clips_per_second: float
    """Of the median round, opening the file included."""
    times_torch_awp: tuple[float, float, float]
    """Speed in units of torch-awp's in the same round: lower quartile, median, upper quartile."""
    largest_difference: float
    """From torch-awp's output, in grey levels of 255."""
    mean_difference: float


def measure(tasks: list[Task]) -> dict[str, Result]:
    """The competitors on the same tasks, in an order that rotates; the first task warms up."""
    runs = competitors()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    differences: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for number, task in enumerate(tasks):
        first = number % len(runs)
        clips: dict[str, Tensor] = {}
        for name in [*list(runs)[first:], *list(runs)[:first]]:
            began = time.perf_counter()
            clips[name] = runs[name](task)
            seconds[name].append(time.perf_counter() - began)
        levels = torch.tensor(DEVIATION).view(3, 1, 1, 1)
        for name, found in clips.items():
            apart = ((found - clips["torch-awp"]) * levels).abs()
            differences[name].append((apart.max().item(), apart.mean().item()))
    results = {}
    for name in runs:
        own, unit = seconds[name][1:], seconds["torch-awp"][1:]
        ratios = [base / each for base, each in zip(unit, own, strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)
        speed = tasks[0].sampling.clips / statistics.median(own)
        largest = max(pair[0] for pair in differences[name])
        mean = statistics.mean(pair[1] for pair in differences[name])
        results[name] = Result(speed, (low, median, high), largest, mean)
    return results


# Parts of a reading, and the functions whose time they are.
PARTS = {
    "open": ("<built-in method av.container.core.open>", "open"),
    "index": ("index_packets",),
    "decode": ("<method 'decode' of 'av.codec.context.CodecContext' objects>",),
    "convert": (
        "<method 'reformat' of 'av.video.reformatter.VideoReformatter' objects>",
        "<method 'to_ndarray' of 'av.video.frame.VideoFrame' objects>",
    ),
    "cut fragments": ("cut_frame",),
    "normalise": ("normalise",),
}


def profile(tasks: list[Task]) -> dict[str, float]:
    """Milliseconds per clip of the parts of reading."""
    profiler = cProfile.Profile()
    began = time.perf_counter()
    for task in tasks:
        profiler.runcall(ours, task)
    total = time.perf_counter() - began
    spent = dict.fromkeys(PARTS, 0.0)
    for (_, _, function), row in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        for part, functions in PARTS.items():
            if function in functions:
                spent[part] += row[3]
    spent["everything"] = total
    clips = sum(task.sampling.clips for task in tasks)
    return {part: 1000 * each / clips for part, each in spent.items()}


def make_video(path: Path, height: int, key_interval: int, seconds: int) -> Path:
    """Film a photograph with a moving, slightly noisy camera: H.264, as x264 writes it."""
    with av.open(str(path), "w") as container:
        options = {"preset": "veryfast", "crf": "23", "g": str(key_interval)}
        stream = container.add_stream("libx264", rate=FRAME_RATE, options=options)
        stream.height, stream.width = height, height * 16 // 9
        stream.pix_fmt = "yuv420p"
        for pixels in film(height, stream.width, FRAME_RATE * seconds):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def film(height: int, width: int, frames: int) -> Iterator[NDArray[np.uint8]]:
    """Frames [height, width, 3] of a camera that pans over a photograph and sways."""
    size = (round(1.3 * width), round(1.3 * height))
    photograph = Image.fromarray(load_photograph(PHOTOGRAPHS[0])).resize(
        size, Image.Resampling.BICUBIC
    )
    scene = np.asarray(photograph).astype(np.int16)
    random = np.random.default_rng(0)
    grain = np.rint(random.normal(0, 2, (height + 64, width + 64, 1))).astype(np.int16)
    for number in range(frames):
        left = round((scene.shape[1] - width) * number / frames)
        top = round((scene.shape[0] - height) * (0.5 + 0.5 * np.sin(0.1 * number)))
        y, x = random.integers(0, 64, 2)  # moving one grain is quicker than drawing another
        view = scene[top : top + height, left : left + width]
        noisy = view + grain[y : y + height, x : x + width]
        yield np.clip(noisy, 0, 255).astype(np.uint8)


def measure_video(path: Path, benchmark: Benchmark) -> dict[str, object]:
    """All readings of one file, and where the time goes."""
    with Video.open(path) as video:
        info = video.info()
    found: dict[str, object] = {}
    for use, sampling in SAMPLINGS.items():
        tasks = [Task(path, info, sampling, seed) for seed in range(benchmark.rounds + 1)]
        measured = measure(tasks)
        print(f"\n{path.stem}, {use}")
        print_results(measured)
        found[use] = {name: asdict(result) for name, result in measured.items()}
        parts = profile(tasks)
        print("  milliseconds per clip: ", ", ".join(f"{p} {t:.1f}" for p, t in parts.items()))
        found[f"{use}, milliseconds per clip"] = parts
    return {"bytes": path.stat().st_size, **asdict(info), **found}


def read_fast_vqa(path: Path, generator: torch.Generator | None) -> Tensor:
    """FAST-VQA's training clip, or its four test clips."""
    return read_clips(path, SAMPLINGS["training" if generator else "testing"], generator)


def read_augmented(path: Path, generator: torch.Generator | None) -> Tensor:
    """FAST-VQA's training clip with augmentation of whole frames."""
    augmented = replace(FAST_VQA, augmentation="trivial" if generator else "none")
    return read_clips(path, augmented, generator)


def read_sama(path: Path, generator: torch.Generator | None) -> Tensor:
    """SAMA's training clip, or its four test clips."""
    return read_sama_clips(path, SamaSampling(clips=1 if generator else 4), generator)


def read_tiny(path: Path, generator: torch.Generator | None) -> Tensor:
    """What the tiny model sees: one training view, or four test views."""
    return read_planes(path, generator, FragmentSampling(), 4)[0]


MEMORY_READERS: dict[str, Callable[[Path, torch.Generator | None], Tensor]] = {
    "FAST-VQA": read_fast_vqa,
    "FAST-VQA, augmented": read_augmented,
    "SAMA": read_sama,
    "tiny FAST-VQA": read_tiny,
}


def largest_held() -> int:
    """Bytes that this process has held at most; unlike getrusage's without those of its parent."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def grown_by(reader: str, path: Path, small: Path, use: Use) -> int:
    """Bytes by which a process grows in reading a file, after it has read a small one."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0) if use == "training" else None
    MEMORY_READERS[reader](small, generator)  # what libraries load and keep anyway
    before = largest_held()
    MEMORY_READERS[reader](path, generator)
    return largest_held() - before


def measure_memory(folder: Path, benchmark: Benchmark) -> dict[str, dict[str, float]]:
    """MiB by reader, use and video."""
    small = make_video(folder / "small.mp4", 90, 25, 1)
    found: dict[str, dict[str, float]] = {}
    for height in benchmark.memory_heights:
        for seconds in benchmark.memory_seconds:
            path = make_video(folder / f"{height}p-{seconds}s.mp4", height, 25, seconds)
            for reader in MEMORY_READERS:
                for use in SAMPLINGS:
                    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
                        grown = fresh.submit(grown_by, reader, path, small, use).result()
                    mebibytes = round(grown / 2**20, 1)
                    found.setdefault(f"{reader}, {use}", {})[path.stem] = mebibytes
                    print(f"{path.stem:<10} {reader:<20} {use:<9} {mebibytes:8.1f} MiB", flush=True)
    return found


def measure_stack(benchmark: Benchmark) -> dict[str, object]:
    """Shares of the time of training `fast_vqa.py tiny`: median and quartiles over rounds."""
    settings = replace(
        fast_vqa.PRESETS["tiny"][1], data_root=benchmark.mini_ugc, epochs=benchmark.stack_epochs
    )
    place, task = ProcessGroup(torch.device("cpu")), fast_vqa.task(settings)
    parts = parts_of(load_dataset(settings.dataset, settings.data_root), {}, settings, 0)
    shares: dict[str, list[float]] = {"steps": [], "reading": [], "choosing, saving, logging": []}
    milliseconds = []
    began = time.perf_counter()
    for sample in (*parts.train, *parts.validation):
        for generator in (torch.Generator(), None):
            task.read(sample.path, generator)
    first = time.perf_counter() - began
    for _ in range(benchmark.rounds):
        run = TrainingRun(task, settings, parts.train, 0, place, parts.validation)
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            fit(run, Path(folder))
            seconds = time.perf_counter() - began
        steps, epochs = sum(run.state.step_seconds), run.state.seconds
        for name, own in zip(shares, (steps, epochs - steps, seconds - epochs), strict=True):
            shares[name].append(own / seconds)
        milliseconds.append(1000 * statistics.median(run.state.step_seconds))
    found: dict[str, object] = {
        "perturb": settings.perturb,
        "epochs": settings.epochs,
        "milliseconds of a step": statistics.median(milliseconds),
        "seconds of the first reading": first,
    }
    for name, every in shares.items():
        low, median, high = statistics.quantiles(every, n=4)
        found[name] = (low, median, high)
        print(f"  {name:<28}{median:7.1%} ({low:.1%} ... {high:.1%})", flush=True)
    return found


def print_results(measured: dict[str, Result]) -> None:
    """One line per competitor."""
    for name, result in measured.items():
        low, median, high = result.times_torch_awp
        print(
            f"  {name:<22}{result.clips_per_second:7.2f} clips/s,"
            f"{median:6.2f} ({low:.2f} ... {high:.2f}) times torch-awp,"
            f" differs by {result.largest_difference:.2f} of 255"
            f" (mean {result.mean_difference:.3f})",
            flush=True,
        )


def main(benchmark: Benchmark) -> None:
    """Measure, print a table and write the numbers."""
    torch.set_num_threads(1)
    path = benchmark.output
    document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        if "speed" in benchmark.measures:
            document |= {**machine(benchmark), "results": measure_speed(Path(folder), benchmark)}
        if "memory" in benchmark.measures:
            mebibytes = measure_memory(Path(folder), benchmark)
            document["memory"] = {**machine(benchmark), "MiB": mebibytes}
    if "stack" in benchmark.measures:
        document["stack"] = {**machine(benchmark), "shares": measure_stack(benchmark)}
    write_json(path, document)
    print(f"\nWritten: {path}")


def measure_speed(folder: Path, benchmark: Benchmark) -> dict[str, dict[str, object]]:
    """All readings of all files."""
    results = {}
    for height in benchmark.heights:
        for interval in benchmark.key_intervals:
            name = f"{height}p, a key frame every {interval}"
            path = make_video(folder / f"{name}.mp4", height, interval, benchmark.seconds)
            results[name] = measure_video(path, benchmark)
    return results


def machine(benchmark: Benchmark) -> dict[str, object]:
    """Where and when it was measured."""
    installed = ["torch", "numpy", "av"]
    if len(competitors()) > 1:
        installed.append("decord")
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "device": device_name(torch.device("cpu")),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in installed},
        "rounds": benchmark.rounds,
    }


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
