"""One step of every full model as its script trains it, in each precision, on random clips."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from on_device import equal, on_host

import fast_vqa
import sama_iqa
import sama_vqa
import simple_vqa
from vqa.datasets import Sample
from vqa.training.distributed import ProcessGroup
from vqa.training.loop import TrainingRun
from vqa.training.settings import Settings
from vqa.training.task import Task

BATCH, STEPS = 3, 5  # of two scores the correlation is 1 whatever they are
FAST = replace(fast_vqa.PAPER, schedule="fixed")  # whose first step has a learning rate
SCRIPTS = {
    "fast_vqa": (fast_vqa.task, FAST, [(1, 3, 32, 224, 224)]),
    "fast_vqa_m": (fast_vqa.task, replace(FAST, model="fast_vqa_m"), [(1, 3, 16, 128, 128)]),
    "sama_vqa": (
        sama_vqa.task,
        replace(sama_vqa.PAPER, schedule="fixed"),
        [(1, 3, 32, 224, 224)],
    ),
    "sama_iqa": (sama_iqa.task, sama_iqa.PAPER, [(3, 256, 256)]),
    "simple_vqa": (simple_vqa.task, simple_vqa.PAPER, [(8, 3, 448, 448), (8, 2304)]),
}


def run_on_noise(
    task: Task, settings: Settings, shapes: list[tuple[int, ...]], device: torch.device, root: Path
) -> TrainingRun:
    """A script's own training, whose reader draws numbers instead of opening files."""
    samples = [Sample(root / f"{number}.mp4", float(number)) for number in range(BATCH * STEPS)]
    for sample in samples:
        sample.path.touch()
    task = replace(
        task, files=(), read=lambda path, random: tuple(torch.randn(shape) for shape in shapes)
    )
    own = replace(settings, data_root=root, batch=BATCH, gamma=1e-3, workers=0)
    return TrainingRun(task, own, samples, 0, ProcessGroup(device))


@pytest.mark.parametrize("amp", ["none", "bf16", "fp16"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_full_model_takes_a_step_from_home(device, script, amp, tmp_path):
    build, settings, shapes = SCRIPTS[script]
    settings = replace(settings, amp=amp)
    run = run_on_noise(build(settings), settings, shapes, device, tmp_path)
    params = list(run.model.parameters())
    start, scale = on_host(params), run.scaler.get_scale()
    at_step: list[bool] = []
    run.optimizer.register_step_pre_hook(lambda *_: at_step.append(equal(params, start)))
    for step in run.steps():
        assert step.loss is not None
        if at_step:  # none where float16 overflowed and the scaler left the step out
            break
        assert equal(params, start)
        assert run.scaler.get_scale() < scale
        scale = run.scaler.get_scale()
    assert at_step == [True]
    assert not equal(params, start)
    assert all(param.isfinite().all() for param in params)
