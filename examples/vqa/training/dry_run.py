"""Show what a training would do and cost before anything long starts."""

import time

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vqa.training.distributed import ProcessGroup
from vqa.training.evaluate import peak_memory, predict
from vqa.training.loop import TrainingRun
from vqa.training.settings import Settings
from vqa.training.split_samples import Parts
from vqa.training.task import Task

# The first step allocates and warms up, which is little of a long one.
_STEPS, _LONG_ENOUGH_SECONDS = 3, 30.0


def dry_run(task: Task, settings: Settings, parts: Parts, group: ProcessGroup) -> None:
    """Take a few steps, test a few files and print what was found; nothing is written."""
    run = TrainingRun(task, settings, parts.train, settings.splits[0], group)
    sizes = {"train": parts.train, "validation": parts.validation, "test": parts.test, **parts.also}
    print("samples:", ", ".join(f"{len(own)} {name}" for name, own in sizes.items()))
    print(_describe_model(run.model))
    print(
        f"optimizer: {type(run.optimizer.base).__name__}, perturb {settings.perturb},"
        f" gamma {settings.gamma:g}, {_count_passes(run):.3g} passes a step",
        flush=True,
    )
    step_seconds, step_wall = _time_steps(run)
    some = parts.test[: 2 * group.world_size]
    began = time.perf_counter()
    predict(run.tested_model, task, some, settings, group)
    test_seconds = (time.perf_counter() - began) / max(1, len(some) // group.world_size)
    batch = run.first_batch()
    shapes = ", ".join(f"{list(tensor.shape)} {tensor.dtype}" for tensor in batch.inputs)
    print(f"batch: {len(batch)} samples of this process, inputs {shapes}")
    memory = peak_memory(group.device)
    if memory is not None:
        print(f"memory: {memory / 2**30:.2f} GiB at most on {group.device}")
    tested = len(parts.chooses(settings)) * run.epochs + sum(
        len(own) for name, own in sizes.items() if name != "train" or settings.train_score
    )
    steps = run.steps_per_epoch * run.epochs
    training, testing = steps * step_wall, tested * test_seconds / group.world_size
    print(
        f"time: {steps} steps of {step_wall:.3g} s ({step_seconds:.3g} s without reading)"
        f" = {training / 3600:.2g} h, {tested} tests of {test_seconds:.3g} s"
        f" = {testing / 3600:.2g} h, for each of {len(settings.splits)} splits"
    )


def _count_passes(run: TrainingRun) -> float:
    """Forward and backward passes of a step; of parts of the model, by their share of operations.

    Where the end alone is perturbed, that is a step's multiplications beside a plain step's.
    """
    if not run.settings.perturb_end:
        return run.settings.steps + 1 if run.settings.perturb == "awp" else 1
    operations = []
    for scale in (0.0, 1.0):
        for group in run.optimizer.param_groups:
            group["perturb_gamma"] = scale * run.settings.gamma
        steps = run.steps()
        with FlopCounterMode(display=False) as counted:
            next(steps)
        steps.close()
        operations.append(counted.get_total_flops())
    return float(operations[1] / operations[0])


def _time_steps(run: TrainingRun) -> tuple[float, float]:
    """Seconds of a step without and with reading the batch, the best of a few."""
    own, wall, ticked = [], [], time.perf_counter()
    steps = run.steps()
    for _, step in zip(range(_STEPS), steps, strict=False):
        now = time.perf_counter()
        own.append(step.seconds)
        wall.append(now - ticked)
        ticked = now
        if sum(wall) > _LONG_ENOUGH_SECONDS:
            break
    steps.close()
    return min(own), min(wall)


def _describe_model(model: nn.Module) -> str:
    parameters = list(model.named_parameters())
    weights = [parameter for name, parameter in parameters if "weight" in name]
    total = sum(parameter.numel() for _, parameter in parameters)
    return (
        f"model: {type(model).__name__}, {total / 1e6:.2f} M parameters in {len(parameters)}"
        f' tensors, of which {len(weights)} have "weight" in their name'
        f" ({sum(weight.numel() for weight in weights) / total:.1%} of the parameters)"
    )
