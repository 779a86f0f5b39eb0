"""Points per second of a loss curve: torch_awp, a plain loop and the package loss-landscapes.

All compute a curve along a filter-normalised direction that they draw themselves, through the same
untrained resnet18 in evaluation mode, in turn, in one process. A ratio is taken within a round, so
that what slows the machine down for a while slows both sides. `forward only` evaluates the loss as
often and moves nothing: the part of the time that no implementation can save.

Needs torchvision and tyro; loss-landscapes takes part if it is installed.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
import tyro
from torch import Tensor, nn
from torchvision.models import resnet18  # type: ignore[import-untyped]

from torch_awp import landscape

Competitor = Callable[[nn.Module, "Workload"], object]


@dataclass(frozen=True)
class Benchmark:
    """Settings of the benchmark."""

    batches: tuple[int, ...] = (1, 32)
    """Images of 32 x 32 pixels per evaluation, one workload each."""
    points: int = 21
    rounds: int = 9
    threads: int = 1
    output: Path = Path(__file__).parent / "results" / "landscape.json"


@dataclass(frozen=True)
class Workload:
    """What is evaluated, and where."""

    images: Tensor
    labels: Tensor
    alphas: list[float]

    def loss(self, model: nn.Module) -> Tensor:
        """The loss of a model."""
        return nn.functional.cross_entropy(model(self.images), self.labels)


def forward_only(model: nn.Module, workload: Workload) -> object:
    """The floor: as many losses at one point."""
    with torch.no_grad():
        return [workload.loss(model).item() for _ in workload.alphas]


def library(model: nn.Module, workload: Workload) -> object:
    """This library."""
    direction = landscape.filter_normalized_direction(model)
    return landscape.loss_curve(model, workload.loss, direction, workload.alphas).tolist()


def plain_loop(model: nn.Module, workload: Workload) -> object:
    """What one writes by hand: tensor by tensor, restoring the weights at the end."""
    params = dict(model.named_parameters())
    backup = {name: param.detach().clone() for name, param in params.items()}
    direction = {}
    for name, weight in backup.items():
        vector = torch.randn_like(weight) if weight.ndim > 1 else torch.zeros_like(weight)
        norms = [t.flatten(1).norm(dim=1) if t.ndim > 1 else t.norm() for t in (weight, vector)]
        scale = norms[0] / (norms[1] + 1e-10)
        direction[name] = vector * scale.reshape(-1, *[1] * (weight.ndim - 1))
    losses = []
    with torch.no_grad():
        for alpha in workload.alphas:
            for name, param in params.items():
                param.copy_(backup[name] + alpha * direction[name])
            losses.append(workload.loss(model).item())
        for name, param in params.items():
            param.copy_(backup[name])
    return losses


def package(model: nn.Module, workload: Workload) -> object:
    """loss-landscapes 3, called as its documentation does."""
    import loss_landscapes  # type: ignore[import-not-found,unused-ignore]
    from loss_landscapes import metrics  # type: ignore[import-not-found,unused-ignore]

    loss = metrics.Loss(nn.functional.cross_entropy, workload.images, workload.labels)
    return loss_landscapes.random_line(
        model, loss, distance=1, steps=len(workload.alphas), normalization="filter"
    )


def competitors() -> dict[str, Competitor]:
    """Those that are installed."""
    found: dict[str, Competitor] = {
        "forward only": forward_only,
        "torch_awp": library,
        "plain loop": plain_loop,
    }
    if importlib.util.find_spec("loss_landscapes"):
        found["loss-landscapes"] = package
    return found


def build_model() -> nn.Module:
    """A resnet18 without a zero among its weights, by which loss-landscapes would divide."""
    torch.manual_seed(0)
    model: nn.Module = resnet18(num_classes=10).eval()
    with torch.no_grad():
        for param in model.parameters():
            if param.ndim == 1:
                param.add_(0.1 * torch.rand_like(param) + 0.01)
    return model


@dataclass(frozen=True)
class Result:
    """What one competitor did on one workload."""

    points_per_second: float
    """Of the median round, drawing the direction included."""
    times_torch_awp: tuple[float, float, float]
    """Speed in units of torch_awp's in the same round: lower quartile, median, upper quartile."""
    change_left: float
    """Largest change of any weight that it leaves behind."""


def measure(batch: int, benchmark: Benchmark) -> dict[str, Result]:
    """The competitors on one workload, in an order that rotates from round to round."""
    workload = Workload(
        torch.randn(batch, 3, 32, 32),
        torch.randint(10, (batch,)),
        torch.linspace(-1, 1, benchmark.points).tolist(),
    )
    runs = competitors()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    change_left: dict[str, float] = {}
    original = build_model()
    for number in range(-1, benchmark.rounds):  # one to warm up
        first = number % len(runs)
        for name in [*list(runs)[first:], *list(runs)[:first]]:
            model = copy.deepcopy(original)
            began = time.perf_counter()
            runs[name](model, workload)
            if number >= 0:
                seconds[name].append(time.perf_counter() - began)
            pairs = zip(model.parameters(), original.parameters(), strict=True)
            change_left[name] = max((a - b).abs().max().item() for a, b in pairs)
    results = {}
    for name, own in seconds.items():
        ratios = [ours / theirs for ours, theirs in zip(seconds["torch_awp"], own, strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)
        speed = benchmark.points / statistics.median(own)
        results[name] = Result(speed, (low, median, high), change_left[name])
    return results


def main(benchmark: Benchmark) -> None:
    """Measure, print a table and write the numbers."""
    torch.set_num_threads(benchmark.threads)
    results = {}
    for batch in benchmark.batches:
        workload = f"resnet18, {batch} x 3 x 32 x 32"
        measured = measure(batch, benchmark)
        results[workload] = {name: asdict(result) for name, result in measured.items()}
        print(f"\n{workload}, {benchmark.points} points on a line")
        for name, result in measured.items():
            low, median, high = result.times_torch_awp
            print(
                f"{name:<16}{result.points_per_second:8.1f} points/s,"
                f"{median:6.2f} ({low:.2f} ... {high:.2f}) times torch_awp,"
                f" leaves the weights changed by {result.change_left:.2g}"
            )
    installed = ["torch", "torchvision"]
    if "loss-landscapes" in competitors():
        installed.append("loss-landscapes")
    document = {
        "device": f"cpu ({platform.processor() or platform.machine()})",
        "cores": os.cpu_count(),
        "threads": benchmark.threads,
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in installed},
        "points": benchmark.points,
        "rounds": benchmark.rounds,
        "results": results,
    }
    benchmark.output.parent.mkdir(parents=True, exist_ok=True)
    benchmark.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(f"\nWritten: {benchmark.output}")


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
