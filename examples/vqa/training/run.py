"""One model in training: weights, optimizer, moving average, and how far it has come."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from torch_awp import freeze_running_stats
from vqa.datasets import Sample
from vqa.training.checkpoint import Counters, RunStateError, fingerprint, load_state, save_state
from vqa.training.distributed import Place
from vqa.training.evaluate import autocast
from vqa.training.loader import Batch, LabelledFiles, training_loader
from vqa.training.optim import split_off_head
from vqa.training.perturbation import perturbed
from vqa.training.sampler import TrainingDraws
from vqa.training.settings import Settings
from vqa.training.step import Objective, TrainingStep
from vqa.training.task import Task

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """What one optimizer step gave."""

    loss: float | None
    """None where bad files have left nothing to take a step on."""
    batches: int
    seconds: float
    """From the batches being there to the weights being updated, on the device, too."""


class TrainingRun:
    """A model, how it is trained, and how far that has come.

    Args:
        task: the model and what belongs to it.
        settings: everything else.
        samples: what it is trained on.
        split: number of the split, part of the run's identity.
        place: this process among its peers.
    """

    def __init__(
        self,
        task: Task,
        settings: Settings,
        samples: Sequence[Sample],
        split: int,
        place: Place,
    ) -> None:
        self.task, self.settings, self.samples, self.place = task, settings, samples, place
        self.counters = Counters()
        self._fingerprint = fingerprint(settings, split, samples)
        torch.manual_seed(settings.seed)
        self.model = task.build().to(place.device)
        self.optimizer = _optimizer(self.model, task, settings)
        self.average = _moving_average(self.model, settings.ema)
        self._scaler = torch.amp.GradScaler(place.device.type) if settings.amp == "fp16" else None
        self._draws = TrainingDraws(
            len(samples),
            settings.batch,
            settings.seed,
            place.rank,
            place.processes,
            settings.drop_last,
        )
        files = LabelledFiles(samples, task.read, settings.bad_files == "skip")
        self._loader = training_loader(
            files, self._draws, settings.workers, pin_memory=place.device.type == "cuda"
        )
        self._compiled: nn.Module = self.model
        if settings.compile:
            self._compiled = torch.compile(self.model)  # type: ignore[assignment]
        # Every process drops out other units.
        torch.manual_seed(settings.seed + place.rank)

    @property
    def tested_model(self) -> nn.Module:
        """The model whose scores count: the moving average where there is one."""
        return self.model if self.average is None else self.average.module

    @property
    def batches_per_epoch(self) -> int:
        """Batches in an epoch."""
        return len(self._draws)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        return math.ceil(self.batches_per_epoch / self.settings.accumulate)

    @property
    def epochs(self) -> int:
        """Epochs in all."""
        return self.settings.linear_epochs + self.settings.epochs

    def steps(self) -> Generator[Step]:
        """Take the steps that the current epoch has left, and say after each what it gave."""
        counters = self.counters
        backbone, _ = split_off_head(self.model, self.task.head)
        for _, parameter in backbone:
            parameter.requires_grad_(counters.epoch >= self.settings.linear_epochs)
        model = self._in_parallel()
        model.train()
        step = TrainingStep(self._objective(model), self.optimizer, self._scaler)
        self._draws.start(counters.epoch, counters.batch)
        for batches in _groups(self._loader, self.settings.accumulate):
            began = time.perf_counter()
            mean = self._step(step, batches)
            loss = None if mean is None else mean.item()  # waits for the device
            counters.batch += len(batches)
            counters.step += 1
            yield Step(loss, len(batches), time.perf_counter() - began)
        # Each process has batch statistics of its own; all are to test the same model.
        self.place.copy_from_first(self.tested_model.buffers())
        counters.epoch, counters.batch = counters.epoch + 1, 0

    def first_batch(self) -> Batch:
        """The first batch of the current epoch, as the model would see it."""
        self._draws.start(self.counters.epoch)
        batch: Batch = next(iter(self._loader))
        return batch

    def save(self, path: Path) -> None:
        """Write all that `load` needs; called by every process, written by the first."""
        random = self.place.gather([_random_states(self.place.device)])
        self.counters.bad_files = sorted(set(self.place.gather(self.counters.bad_files)))
        if not self.place.is_first:
            return
        parts = {
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if self._scaler is None else self._scaler.state_dict(),
            "random": random,
        }
        save_state(path, self._fingerprint, self.counters, parts)

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote, bit for bit.

        Raises:
            RunStateError: as `load_state`, or the run had another number of processes or another
                kind of device.
        """
        counters, parts = load_state(path, self._fingerprint)
        saved, place = parts["random"], self.place
        if len(saved) != place.processes or ("cuda" in saved[0]) != (place.device.type == "cuda"):
            kind = "cuda" if "cuda" in saved[0] else "cpu"
            raise RunStateError(
                f"{path}: expected the state of {place.processes} process(es) on"
                f" {place.device.type}, got that of {len(saved)} on {kind}"
            )
        self.counters = counters
        self.model.load_state_dict(parts["model"])
        self.optimizer.load_state_dict(parts["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(parts["average"])
        if self._scaler is not None:
            self._scaler.load_state_dict(parts["scaler"])
        _restore_random_states(saved[place.rank], place.device)

    def learning_rates(self) -> list[float]:
        """Of every parameter group, as of the last step."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def _step(self, step: TrainingStep[Batch], batches: Sequence[Batch]) -> Tensor | None:
        factor = self.task.multiplier(self.counters.step, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        self.counters.bad_files += [message for batch in batches for message in batch.bad_files]
        readable = [batch.to(self.place.device) for batch in batches if self._is_usable(batch)]
        if not readable:
            return None
        loss = step(readable) / self.place.processes
        if self.average is not None:
            self.average.update_parameters(self.model)
        return loss

    def _is_usable(self, batch: Batch) -> bool:
        """Whether bad files have left a pair to compare, and a sample for every process."""
        if self.place.processes == 1:
            return len(batch) > 1
        if self.settings.bad_files == "stop":
            return True
        return min(self.place.gather([len(batch)])) > 0

    def _objective(self, model: nn.Module) -> Objective[Batch]:
        """Loss of a batch over all processes, times their number; see `Place.gather_batch`."""
        task, settings, place = self.task, self.settings, self.place

        def objective(batch: Batch, clean: bool) -> Tensor:
            frozen = task.freeze_statistics and not clean
            standing = freeze_running_stats(self.model) if frozen else nullcontext()
            with standing, autocast(settings, place.device):
                scores = task.scores(model, batch.inputs, "first" if clean else "later")
            share = settings.batch // place.processes
            everybody = place.gather_batch(scores.float(), batch.scores, share)
            return task.loss(*everybody) * place.processes

        return objective

    def _in_parallel(self) -> nn.Module:
        if self.place.processes == 1:
            return self._compiled
        # Made anew in every epoch, because it must know which parameters stand still.
        devices = None if self.place.device.type == "cpu" else [self.place.device.index]
        return DistributedDataParallel(self._compiled, device_ids=devices)


def _optimizer(model: nn.Module, task: Task, settings: Settings) -> torch.optim.Optimizer:
    base = task.optimizer(model)
    for group in base.param_groups:
        group["initial_lr"] = group["lr"]
    return perturbed(base, settings.method, settings.gamma, settings.seed, settings.rule)


def _moving_average(model: nn.Module, decay: float) -> AveragedModel | None:
    if decay == 0:
        return None
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]
    # As published: the average begins with the weights before the first step, not after it.
    average.n_averaged.fill_(1)
    return average


def _groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group


def _random_states(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _restore_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
