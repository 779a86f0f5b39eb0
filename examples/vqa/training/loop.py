"""Training from top to bottom: the run, its epochs, a step, and the passes of the optimizer."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from torch_awp import freeze_running_stats
from vqa.datasets import Sample
from vqa.io.files import digest
from vqa.models.computed_once import ComputedOnce
from vqa.processes import progress_bar
from vqa.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    TrainerState,
    load_checkpoint,
    load_state,
    run_config,
    save_checkpoint,
    save_state,
)
from vqa.training.distributed import ProcessGroup
from vqa.training.evaluate import autocast, measured, predict
from vqa.training.loader import Batch, batch_loader, training_draws
from vqa.training.log import RunLog
from vqa.training.optim import advance, moving_average, perturbed, split_off_head
from vqa.training.settings import Settings, plain
from vqa.training.task import Task

T = TypeVar("T")


def fit(run: TrainingRun, folder: Path) -> None:
    """Train a run to its end, from where an earlier session stopped; load the chosen weights.

    The folder is that of last.pt (all it takes to go on), best.pt (the chosen weights), log.csv and
    the events.
    """
    state, last, best = run.state, folder / "last.pt", folder / "best.pt"
    if run.settings.resume == "auto" and last.is_file():
        run.load(last)
        state = run.state
        if state.epoch == run.epochs:
            print(f"{folder}: found finished with these settings and files, not trained again")
        else:
            print(f"{folder}: resumed after epoch {state.epoch}, step {state.step}")
    elif run.group.is_main:
        last.unlink(missing_ok=True)  # or the next session would resume the old run
    with closing(RunLog(folder, state.step)) if run.group.is_main else nullcontext() as log:
        while state.epoch < run.epochs:
            loss = _train_epoch(run, last, log)
            row = {
                "epoch": state.epoch,
                "step": state.step,
                "loss": loss,
                "learning_rate": max(state.learning_rates),
                "seconds": state.seconds,
            }
            state.history.append({**row, **_choose(run, best)})
            if log is not None:
                log.epoch(state.history, state.step)
            _save(run, last, log)
    run.group.barrier()
    kept = load_checkpoint(best)
    if (kept.run, kept.epoch) != (run.digest, state.best_epoch):
        raise CheckpointError(
            f"{best}: expected epoch {state.best_epoch} as this run wrote it, got epoch"
            f" {kept.epoch} of another run: choose another --output, or --resume never"
        )
    run.tested_model.load_state_dict(kept.state_dict)


def _train_epoch(run: TrainingRun, last: Path, log: RunLog | None) -> float:
    """Train for the rest of an epoch; the mean loss over all of its steps."""
    state, first = run.state, run.group.is_main
    title = f"epoch {state.epoch + 1}/{run.epochs}"
    ticked = time.perf_counter()
    with progress_bar(title, run.batches_per_epoch, "batch", leave=False, disable=not first) as bar:
        bar.update(state.batch)
        for step in run.steps():
            now = time.perf_counter()
            state.seconds, ticked = state.seconds + now - ticked, now
            bar.update(step.batches)
            if step.loss is not None:
                state.losses.append(step.loss)
                state.step_seconds.append(step.seconds)
                bar.set_postfix(loss=f"{step.loss:.4f}", refresh=False)
                if log is not None:
                    log.step(state.step, step.loss, state.learning_rates)
            if run.settings.save_every and state.step % run.settings.save_every == 0:
                _save(run, last, log)
    if not state.losses:
        raise ValueError(
            "bad_files: expected something to train on, of all batches fewer than two files could"
            f" be read: {'; '.join(state.bad_files[-1:])}"
        )
    loss = sum(state.losses) / len(state.losses)
    state.losses = []
    return loss


@dataclass(frozen=True)
class Step:
    """What one optimizer step gave."""

    loss: float | None  # None where bad files have left nothing to take a step on
    batches: int
    seconds: float  # from the batches being there to the weights being updated on the device


class TrainingRun:
    """A model, how it is trained, and how far that has come.

    The number of the split is part of what decides the result. The samples in `chooses` choose the
    epoch by their SRCC + PLCC; without any the last one counts.
    """

    def __init__(
        self,
        task: Task,
        settings: Settings,
        samples: Sequence[Sample],
        split: int,
        group: ProcessGroup,
        chooses: Sequence[Sample] = (),
    ) -> None:
        self.task, self.settings, self.group, self.chooses = task, settings, group, chooses
        self.state = TrainerState()
        self._config = run_config(
            settings, split, {"train": samples, "choose the epoch": chooses}, task.files
        )
        self.digest = digest(self._config)  # of all that decides the result
        torch.manual_seed(settings.seed)
        self.model = task.build().to(group.device)
        end = task.end if settings.perturb_end else ()
        self._once = ComputedOnce(self.model, end)
        self.optimizer = perturbed(task.optimizer(self.model), settings, end)
        self.average = moving_average(self.model, settings.ema)
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=settings.amp == "fp16")
        self._draw_epoch = partial(
            training_draws,
            len(samples),
            settings.batch,
            settings.seed,
            rank=group.rank,
            processes=group.world_size,
            drop_last=settings.drop_last,
        )
        self._draws = self._draw_epoch(epoch=0)
        self._loader = batch_loader(samples, task.read, settings, self._draws, group.device)
        self.epochs = settings.linear_epochs + settings.epochs
        self.batches_per_epoch = len(self._draws)
        self.steps_per_epoch = math.ceil(self.batches_per_epoch / settings.accumulate)
        self._schedule = LambdaLR(
            self.optimizer, lambda step: task.multiplier(step, self.steps_per_epoch)
        )
        self._compiled: nn.Module = self.model
        if settings.compile:
            self._compiled = torch.compile(self.model)  # type: ignore[assignment]
        # Every process drops out other units.
        torch.manual_seed(settings.seed + group.rank)

    @property
    def tested_model(self) -> nn.Module:
        """The model whose scores count: the moving average where there is one."""
        return self.model if self.average is None else self.average.module

    def steps(self) -> Generator[Step]:
        """Take the steps that the current epoch has left, and say after each what it gave."""
        state = self.state
        backbone, _ = split_off_head(self.model, self.task.head)
        for _, parameter in backbone:
            parameter.requires_grad_(state.epoch >= self.settings.linear_epochs)
        model = self._in_parallel()
        model.train()
        self._draws[:] = self._draw_epoch(epoch=state.epoch)[state.batch :]
        for batches in _groups(self._loader, self.settings.accumulate):
            began = time.perf_counter()
            mean = self._step(model, batches)
            loss = None if mean is None else mean.item()  # waits for the device
            state.batch += len(batches)
            state.step += 1
            yield Step(loss, len(batches), time.perf_counter() - began)
        # Each process has batch statistics of its own; all are to test the same model.
        self.group.broadcast(self.tested_model.buffers())
        state.epoch, state.batch = state.epoch + 1, 0

    def _step(self, model: nn.Module, batches: Sequence[Batch]) -> Tensor | None:
        """One step on the mean loss of some batches; the loss of its first pass."""
        self.state.bad_files += [why for batch in batches for why in batch.bad_files.values()]
        readable = [batch.to(self.group.device) for batch in batches if self._is_usable(batch)]
        losses = []
        if readable:
            for p in self.optimizer.passes():
                self.optimizer.zero_grad()
                inputs = p.inputs if self.settings.perturb_end else None
                losses.append(self._forward_and_backward(model, readable, p.index > 0, inputs))
            self._once.forget()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if self.average is not None:
                self.average.update_parameters(self.model)
        self.state.learning_rates = [float(rate) for rate in self._schedule.get_last_lr()]
        advance(self._schedule)
        return losses[0] / self.group.world_size if losses else None

    def _forward_and_backward(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        later: bool,
        inputs: Sequence[Tensor] | None,
    ) -> Tensor:
        """One pass: the gradient of the mean loss, of several batches one after the other.

        Only with respect to `inputs`, where they are given.
        """
        losses = []
        with (
            model.no_sync()  # DistributedDataParallel averages all gradients or none
            if inputs is not None and isinstance(model, DistributedDataParallel)
            else nullcontext()
        ):
            for batch in batches:
                loss = self._loss(model, batch, later) / len(batches)
                torch.autograd.backward(self.scaler.scale(loss), inputs=inputs)
                losses.append(loss.detach())
        self.group.all_reduce_mean(own.grad for own in inputs or () if own.grad is not None)
        return torch.stack(losses).sum()

    def _loss(self, model: nn.Module, batch: Batch, later: bool) -> Tensor:
        """Loss of a batch over all processes, times their number: see `gather_batch`."""
        task, group = self.task, self.group
        frozen = later and task.freeze_statistics
        with (
            freeze_running_stats(self.model, frozen),
            autocast(self.settings, group.device),
            self._once.outputs_of(id(batch)),
        ):
            scores = task.scores(model, batch.inputs, "later" if later else "first")
        share = self.settings.batch // group.world_size
        everybody = group.gather_batch(scores.float(), batch.scores, share)
        return task.loss(*everybody) * group.world_size

    def _is_usable(self, batch: Batch) -> bool:
        """Whether bad files have left a pair to compare, and a sample for every process."""
        if self.group.world_size == 1:
            return len(batch) > 1
        if self.settings.bad_files == "stop":
            return True
        return min(self.group.all_gather([len(batch)])) > 0

    def _in_parallel(self) -> nn.Module:
        if self.group.world_size == 1:
            return self._compiled
        # Made anew in every epoch, because it must know which parameters stand still.
        devices = None if self.group.device.type == "cpu" else [self.group.device.index]
        return DistributedDataParallel(self._compiled, device_ids=devices)

    def first_batch(self) -> Batch:
        """The first batch of the current epoch, as the model would see it."""
        self._draws[:] = self._draw_epoch(epoch=self.state.epoch)
        batch: Batch = next(iter(self._loader))
        return batch

    def save(self, path: Path) -> None:
        """Called by every process; the first one writes."""
        self.state.bad_files = sorted(set(self.group.all_gather(self.state.bad_files)))
        save_state(path, self._config, self.state, self._parts(), self.group)

    def load(self, path: Path) -> None:
        """Resume from what `save` wrote, bit for bit."""
        self.state = load_state(path, self._config, self._parts(), self.group)

    def _parts(self) -> dict[str, Any]:
        """All that a step changes, state and random states aside."""
        parts: dict[str, Any] = {
            "model": self.model,
            "optimizer": self.optimizer,
            "schedule": self._schedule,
            "scaler": self.scaler,
        }
        return parts if self.average is None else {**parts, "average": self.average}


def _choose(run: TrainingRun, best: Path) -> dict[str, float]:
    """Score the epoch, and keep its weights if it is the best so far (or if nothing chooses)."""
    state, task, settings, group = run.state, run.task, run.settings, run.group
    model, score = run.tested_model, math.inf
    scores: dict[str, float] = {}
    if run.chooses:
        found = predict(model, task, run.chooses, settings, group, "choose", task.choice_batch)
        chosen = measured(found, settings)
        score = chosen.srcc + chosen.plcc
        scores = {f"selection_{name}": value for name, value in asdict(chosen).items()}
    # Not a number is never better; but there must be one to fall back on.
    if score > state.best or state.best_epoch == 0:
        state.best = score if math.isfinite(score) else -math.inf
        state.best_epoch = state.epoch
        if group.is_main:
            checkpoint = Checkpoint(task.script, plain(settings), state.epoch, model.state_dict())
            save_checkpoint(best, replace(checkpoint, features=task.features(), run=run.digest))
    return scores


def _save(run: TrainingRun, last: Path, log: RunLog | None) -> None:
    if log is not None:
        log.flush()  # the session that resumes from here does not log these steps again
    run.save(last)


def _groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group
