"""What a weight perturbation costs beside the passes through the network.

Three questions, each answered by runs that take turns in one process, so that a ratio within a
round compares what ran within moments:

1. Perturb and restore, on tensors shaped like those of real models, against a copy out and back,
   the bytes that must move, pytorch_optimizer's SAM and the paper's rule written tensor by tensor.
2. Whole training steps against plain ones, of which they contain one or more.
3. Operations dispatched, waits for a value, and memory.

Needs torchvision, pytorch_optimizer and tyro.
"""

from __future__ import annotations

import copy
import datetime
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import pytorch_optimizer
import torch
import tyro
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import models  # type: ignore[import-untyped]

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation

Run = Callable[[], object]
Seconds = dict[str, list[float]]

GAMMA = 1e-3
# Of all tensors together: save (read, write; the norm comes with it), norm of the gradient (read),
# move (read, read, write), restore (read, write).
PASSES_OF_LAYER = 8
WAITS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "unique")


@dataclass(frozen=True)
class Benchmark:
    """Settings of the benchmark."""

    shapes: tuple[Literal["resnet50", "swin3d_t", "swin_v2_t", "small"], ...] = (
        "resnet50",
        "swin3d_t",
        "swin_v2_t",
        "small",
    )
    """Whose tensors are perturbed; `small` are many of 64 x 64."""
    small_tensors: int = 500
    rounds: int = 25
    """Of perturbing and restoring."""
    steps: int = 60
    """Training steps of each network and method."""
    batch: int = 64
    """Samples of a training step."""
    threads: int = 2
    device: str = "cpu"
    output: Path = Path(__file__).parent / "results" / "overhead.json"


@dataclass(frozen=True)
class Spread:
    """Quartiles of what was measured round by round."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Ratio:
    """One time in units of another in the same round, beside what it should not exceed."""

    name: str
    times: Spread
    aim: float | None


class Still(torch.optim.Optimizer):
    """An optimizer whose step does nothing, so that only the perturbation takes time."""

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, settings)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Stay."""


class Drifting(Still):
    """An optimizer that moves one number, so that there is an update."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move the first number of every tensor."""
        for param in self.param_groups[0]["params"]:
            param.view(-1)[0] += 1e-6


class Dispatched(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the name of every operation that reaches the dispatcher."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


# -- perturbing and restoring --------------------------------------------------------------------


def parameters(name: str, benchmark: Benchmark) -> list[nn.Parameter]:
    """Random tensors with gradients, in the shapes of a model's with more than one dimension."""
    if name == "small":
        shapes = [torch.Size((64, 64))] * benchmark.small_tensors
    else:
        with torch.device("meta"):
            network = models.get_model(name)
        shapes = [param.shape for param in network.parameters() if param.ndim > 1]
    params = [nn.Parameter(torch.randn(shape, device=benchmark.device)) for shape in shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    return params


def visits(params: list[nn.Parameter]) -> dict[str, Run]:
    """Everything that goes to perturbed weights and back, and what it is compared with."""
    weights = [param.detach() for param in params]
    kept = [weight.clone() for weight in weights]
    largest = torch.empty(sum(weight.numel() for weight in weights), device=weights[0].device)
    another = torch.empty_like(largest)

    def copy_out_and_back() -> None:
        torch._foreach_copy_(kept, weights)
        torch._foreach_copy_(weights, kept)

    def copy_into_fresh_memory_and_back() -> None:
        torch._foreach_copy_(weights, [weight.clone() for weight in weights])

    return {
        "copy": copy_out_and_back,
        "copy, fresh memory": copy_into_fresh_memory_and_back,
        "bandwidth": lambda: another.copy_(largest),
        "noise": lambda: [torch.randn_like(weight) for weight in weights],
        "layer": adversarial(params),
        "layer, 3 steps": adversarial(params, steps=3),
        "update": along_updates(params),
        "element": adversarial(params, constraint="element"),
        "element, 3 steps": adversarial(params, constraint="element", steps=3),
        "random": random(params),
        "random, element": random(params, constraint="element"),
        "SAM": sam(params),
        "rule by tensor": rule_by_tensor(params),
    }


def adversarial(params: list[nn.Parameter], steps: int = 1, **settings: Any) -> Run:
    """Climb along the gradients that are there, and come back."""
    optimizer = AdversarialWeightPerturbation(Still(params), GAMMA, steps=steps, **settings)

    def visit() -> None:
        with optimizer.perturb():
            for _ in range(steps - 1):
                optimizer.ascend()

    return visit


def along_updates(params: list[nn.Parameter]) -> Run:
    """Go on along the last update, come back, and keep the next one."""
    optimizer = AdversarialWeightPerturbation(Drifting(params), GAMMA, ascent="update")

    def visit() -> None:
        with optimizer.perturb():
            params[0].grad = params[0].detach()  # stands for a backward pass
        optimizer.step()

    return visit


def random(params: list[nn.Parameter], **settings: Any) -> Run:
    """Move anywhere, and come back."""
    optimizer = RandomWeightPerturbation(Still(params), GAMMA, **settings)

    def visit() -> None:
        with optimizer.perturb():
            pass

    return visit


def sam(params: list[nn.Parameter]) -> Run:
    """pytorch_optimizer's SAM, whose base does nothing."""
    optimizer = pytorch_optimizer.SAM(params, base_optimizer=Still, rho=GAMMA)

    def visit() -> None:
        optimizer.first_step()
        optimizer.second_step()

    return visit


def rule_by_tensor(params: list[nn.Parameter]) -> Run:
    """Equations 10 to 12 of the paper as one writes them down: save, step, project, restore."""

    @torch.no_grad()
    def visit() -> None:
        saved = []
        for param in params:
            weight, gradient = param.detach().clone(), param.grad
            saved.append(weight)
            if gradient is None or gradient.norm() == 0:
                continue
            v = GAMMA * weight.norm() * gradient / gradient.norm()
            if v.norm() > GAMMA * weight.norm():
                v = v * GAMMA * weight.norm() / v.norm()
            param.copy_(weight + v)
        for param, weight in zip(params, saved, strict=True):
            param.copy_(weight)

    return visit


def visit_ratios(seconds: Seconds, device: str) -> Iterator[Ratio]:
    """What took how many times as long as what, with the aims for this device."""
    cpu = device == "cpu"
    # A copy reads and writes: half of its time is one pass.
    passes = [PASSES_OF_LAYER * turn / 2 for turn in seconds["bandwidth"]]
    noise_and_layer = [a + b for a, b in zip(seconds["noise"], seconds["layer"], strict=True)]
    fresh = seconds["copy, fresh memory"]
    layer, element, random_ = (seconds[name] for name in ("layer", "element", "random"))
    yield ratio("layer / copy", layer, seconds["copy"], 2.4 if cpu else None)
    yield ratio("layer / copy, fresh memory", layer, fresh)
    yield ratio("layer / bytes that must move", layer, passes, None if cpu else 1.5)
    yield ratio("layer / SAM", layer, seconds["SAM"], 1.0)
    yield ratio("layer / rule by tensor", layer, seconds["rule by tensor"], None if cpu else 0.1)
    yield ratio("element / copy", element, seconds["copy"], 4.5 if cpu else None)
    yield ratio("random / (noise + layer)", random_, noise_and_layer, 1.3)
    for name in ("update", "layer, 3 steps", "element, 3 steps", "random", "random, element"):
        yield ratio(f"{name} / copy", seconds[name], seconds["copy"])
    for name in ("copy, fresh memory", "SAM", "rule by tensor"):
        yield ratio(f"{name} / copy", seconds[name], seconds["copy"])


# -- whole training steps ------------------------------------------------------------------------


def convolutional() -> nn.Module:
    """A small convolutional network for 3 x 32 x 32 images."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


class Attending(nn.Module):
    """A small transformer over the 4 x 4 patches of a 3 x 32 x 32 image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 96, 4, stride=4)
        layer = nn.TransformerEncoderLayer(96, 4, 192, dropout=0.0, batch_first=True)
        self.encode = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.classify = nn.Linear(96, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, 32, 32]`` to scores ``[B, 10]``."""
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        scores: Tensor = self.classify(self.encode(tokens).mean(1))
        return scores


@dataclass(frozen=True)
class Method:
    """A way to train, how many plain steps it contains, and how many times those it may take."""

    wrap: Callable[[torch.optim.Optimizer], torch.optim.Optimizer]
    passes: int
    aim: float | None = None


def methods(cpu: bool) -> dict[str, Method]:
    """Those whose steps are timed; the aims are for the convolutional network on a CPU."""
    awp = AdversarialWeightPerturbation
    two, one = (1.02, 1.05) if cpu else (None, None)
    return {
        "plain": Method(lambda base: base, 1),
        "layer": Method(lambda base: awp(base, GAMMA), 2, two),
        "layer, 3 steps": Method(lambda base: awp(base, GAMMA, steps=3), 4),
        "element": Method(lambda base: awp(base, GAMMA, constraint="element"), 2),
        "update": Method(lambda base: awp(base, GAMMA, ascent="update"), 1, one),
        "random": Method(lambda base: RandomWeightPerturbation(base, GAMMA), 1, one),
    }


def training(
    network: nn.Module, method: Method, images: Tensor, labels: Tensor, form: str = "closure"
) -> Run:
    """A step of SGD with momentum on one batch, as ``method`` takes it in ``form``."""
    model = copy.deepcopy(network)
    optimizer = method.wrap(torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9))

    def loss_of(scores: Tensor, *_: Any) -> Tensor:
        return nn.functional.cross_entropy(scores, labels)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model(images))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def loop() -> None:
        for _ in optimizer.passes():  # type: ignore[attr-defined]
            closure()
        optimizer.step()

    def plain_loop() -> None:
        closure()
        optimizer.step()

    if form == "attached":
        optimizer.attach(model, loss=loss_of)  # type: ignore[attr-defined]
        return plain_loop
    return loop if form == "passes()" else lambda: optimizer.step(closure)  # type: ignore[arg-type]


def step_ratios(network: nn.Module, benchmark: Benchmark, aims: bool) -> Iterator[Ratio]:
    """Each method's step in units of the plain steps that it contains, attached of the loop's."""
    known = methods(cpu=aims)
    images = torch.randn(benchmark.batch, 3, 32, 32, device=benchmark.device)
    labels = torch.randint(10, (benchmark.batch,), device=benchmark.device)
    network = network.to(benchmark.device)
    runs = {name: training(network, method, images, labels) for name, method in known.items()}
    for name, method in known.items():
        if name != "plain":
            for form in ("passes()", "attached"):
                runs[f"{name}, {form}"] = training(network, method, images, labels, form)
    seconds = take_turns(runs, benchmark.steps, benchmark.device)
    for name in runs:
        own = name.removesuffix(", passes()").removesuffix(", attached")
        contained = [known[own].passes * plain for plain in seconds["plain"]]
        aim = None if name.endswith("attached") else known[own].aim
        yield ratio(f"{name} / {known[own].passes} x plain", seconds[name], contained, aim)
        if name.endswith("attached"):
            loop = seconds[f"{own}, passes()"]
            yield ratio(f"{name} / passes()", seconds[name], loop, 1.02 if aims else None)


# -- measuring -----------------------------------------------------------------------------------


def take_turns(runs: dict[str, Run], rounds: int, device: str) -> Seconds:
    """Seconds of every run in every round, in an order that rotates from round to round."""
    seconds: Seconds = {name: [] for name in runs}
    for number in range(-2, rounds):  # two to warm up
        first = number % len(runs)
        for name in [*list(runs)[first:], *list(runs)[:first]]:
            synchronize(device)
            began = time.perf_counter()
            runs[name]()
            synchronize(device)
            if number >= 0:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def synchronize(device: str) -> None:
    """Wait until an accelerator has done what it was told."""
    if device != "cpu":
        torch.accelerator.synchronize()


def spread(values: list[float]) -> Spread:
    """Their quartiles."""
    return Spread(*statistics.quantiles(values, n=4, method="inclusive"))


def ratio(name: str, these: list[float], those: list[float], aim: float | None = None) -> Ratio:
    """Compare two lists of seconds round by round."""
    return Ratio(name, spread([a / b for a, b in zip(these, those, strict=True)]), aim)


def operations(run: Run) -> dict[str, int]:
    """How many operations a run dispatches, and how many of them wait for a value."""
    with Dispatched() as dispatched:
        run()
    waits = [name for name in dispatched.names if any(f".{word}." in name for word in WAITS)]
    return {"operations": len(dispatched.names), "waits": len(waits)}


def peak_bytes(run: Run, device: str) -> int:
    """The most memory that a run holds at a time beyond what was held before."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    held, peak = 0, 0
    for event in sorted(
        (event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"]
    ):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def costs(params: list[nn.Parameter], device: str) -> dict[str, dict[str, float]]:
    """Operations, waits and memory (in units of the tensors) of the first and of later visits."""
    size = sum(param.numel() * param.element_size() for param in params)
    runs = {
        "layer": adversarial(params),
        "layer, 3 steps": adversarial(params, steps=3),
        "update": along_updates(params),
        "element": adversarial(params, constraint="element"),
        "random": random(params),
        "SAM": sam(params),
        "rule by tensor": rule_by_tensor(params),
    }
    results: dict[str, dict[str, float]] = {}
    for name, run in runs.items():
        first = peak_bytes(run, device) / size
        later = peak_bytes(run, device) / size
        results[name] = {**operations(run), "first peak": first, "later peak": later}
    return results


# -- reporting -----------------------------------------------------------------------------------


def show(title: str, ratios: list[Ratio]) -> None:
    """Print a table of ratios beside their aims."""
    print(f"\n{title}")
    for entry in ratios:
        low, median, high = asdict(entry.times).values()
        line = f"  {entry.name:<32}{median:8.3f} ({low:.3f} ... {high:.3f})"
        if entry.aim is not None:
            line += f"   aim {entry.aim:g}: {'met' if median <= entry.aim else 'missed'}"
        print(line)


def perturbing(benchmark: Benchmark) -> dict[str, Any]:
    """Measure and show perturbing and restoring the tensors of every model."""
    results: dict[str, Any] = {}
    for name in benchmark.shapes:
        params = parameters(name, benchmark)
        elements = sum(param.numel() for param in params)
        seconds = take_turns(visits(params), benchmark.rounds, benchmark.device)
        ratios = list(visit_ratios(seconds, benchmark.device))
        used = costs(params, benchmark.device)
        show(f"perturb and restore {name}: {len(params)} tensors, {elements / 1e6:.1f} M", ratios)
        for run, cost in used.items():
            print(f"  {run:<32}", ", ".join(f"{key} {value:.4g}" for key, value in cost.items()))
        results[name] = {
            "tensors": len(params),
            "elements": elements,
            "milliseconds": {
                run: asdict(spread([1e3 * s for s in own])) for run, own in seconds.items()
            },
            "ratios": [asdict(entry) for entry in ratios],
            "costs": used,
        }
    return results


def stepping(benchmark: Benchmark) -> dict[str, Any]:
    """Measure and show whole training steps of every network."""
    results: dict[str, Any] = {}
    networks = {"convolutional": convolutional(), "transformer": Attending()}
    for name, network in networks.items():
        aims = benchmark.device == "cpu" and name == "convolutional"
        ratios = list(step_ratios(network, benchmark, aims))
        show(f"training steps of a small {name} network", ratios)
        results[name] = [asdict(entry) for entry in ratios]
    return results


def main(benchmark: Benchmark) -> None:
    """Measure, print tables and write the numbers."""
    if benchmark.device != "cpu" and not torch.accelerator.is_available():
        sys.exit(f"device: expected one that torch sees, got {benchmark.device!r}")
    torch.manual_seed(0)
    torch.set_num_threads(benchmark.threads)
    processor = platform.processor() or platform.machine()
    document = {
        "device": (
            f"cpu ({processor})"
            if benchmark.device == "cpu"
            else torch.cuda.get_device_name(benchmark.device)
        ),
        "cores": os.cpu_count(),
        "threads": benchmark.threads,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "torchvision", "pytorch_optimizer")},
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "load_average_before": os.getloadavg(),
        "rounds": benchmark.rounds,
        "steps": benchmark.steps,
        "batch": benchmark.batch,
        "perturb_and_restore": perturbing(benchmark),
        "training_steps": stepping(benchmark),
        "load_average_after": os.getloadavg(),
    }
    benchmark.output.parent.mkdir(parents=True, exist_ok=True)
    benchmark.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(f"\nWritten: {benchmark.output}")


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
