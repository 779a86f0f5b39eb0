"""Train to the end with logs, checkpoints and the choice of an epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from vqa.datasets import Sample
from vqa.io.files import replacing
from vqa.progress import progress_bar
from vqa.training.evaluate import measured, predict
from vqa.training.log import RunLog
from vqa.training.metrics import Agreement
from vqa.training.run import TrainingRun


def fit(run: TrainingRun, chooses: Sequence[Sample], folder: Path) -> None:
    """Train a run to its end, from where an earlier session stopped; load the chosen weights.

    Args:
        run: what is trained.
        chooses: samples whose SRCC + PLCC chooses the epoch; empty for the last one.
        folder: of last.pt (all it takes to go on), best.pt (the chosen weights), log.csv and the
            events.

    Raises:
        RunStateError: last.pt cannot be gone on from.
        ValueError: bad files have left nothing of an epoch to train on.
    """
    last, best = folder / "last.pt", folder / "best.pt"
    if run.settings.resume == "auto" and last.is_file():
        run.load(last)
    elif run.place.is_first:
        last.unlink(missing_ok=True)  # or the next session would go on from the old run
    log = RunLog(folder, run.counters.step) if run.place.is_first else None
    try:
        while run.counters.epoch < run.epochs:
            losses = _train_epoch(run, last, log)
            chosen = _choose(run, chooses, best)
            _write_history(run, losses, chosen, log)
            _save(run, last, log)
    finally:
        if log is not None:
            log.close()
    run.place.wait_for_all()
    saved = torch.load(best, map_location="cpu", weights_only=True)
    run.tested_model.load_state_dict(saved["state_dict"])


def _train_epoch(run: TrainingRun, last: Path, log: RunLog | None) -> float:
    """Train for the rest of an epoch; the mean loss over all of its steps."""
    counters, first = run.counters, run.place.is_first
    title = f"epoch {counters.epoch + 1}/{run.epochs}"
    ticked = time.perf_counter()
    with progress_bar(title, run.batches_per_epoch, "batch", leave=False, disable=not first) as bar:
        bar.update(counters.batch)
        for step in run.steps():
            now = time.perf_counter()
            counters.seconds, ticked = counters.seconds + now - ticked, now
            bar.update(step.batches)
            if step.loss is not None:
                counters.losses.append(step.loss)
                counters.step_seconds.append(step.seconds)
                bar.set_postfix(loss=f"{step.loss:.4f}", refresh=False)
                if log is not None:
                    log.step(counters.step, step.loss, run.learning_rates())
            if run.settings.save_every and counters.step % run.settings.save_every == 0:
                _save(run, last, log)
    if not counters.losses:
        raise ValueError(
            "bad_files: expected something to train on, of all batches fewer than two files could"
            f" be read: {'; '.join(counters.bad_files[-1:])}"
        )
    loss = sum(counters.losses) / len(counters.losses)
    counters.losses = []
    return loss


def _save(run: TrainingRun, last: Path, log: RunLog | None) -> None:
    if log is not None:
        log.flush()  # the session that goes on from here does not log these steps again
    run.save(last)


def _choose(run: TrainingRun, chooses: Sequence[Sample], best: Path) -> Agreement | None:
    """Score the epoch, and keep its weights if it is the best so far (or if nothing chooses)."""
    counters, chosen = run.counters, None
    if chooses:
        predictions = predict(
            run.tested_model, run.task, chooses, run.settings, run.place, "choose"
        )
        chosen = measured(predictions, run.settings.logistic_fit)
    score = math.inf if chosen is None else chosen.srcc + chosen.plcc
    # Not a number is never better; but there must be one to fall back on.
    if chosen is None or score > counters.best or counters.best_epoch == 0:
        counters.best = score if math.isfinite(score) else -math.inf
        counters.best_epoch = counters.epoch
        if run.place.is_first:
            _save_weights(run, best)
    return chosen


def _save_weights(run: TrainingRun, path: Path) -> None:
    with replacing(path) as unfinished:
        torch.save(
            {
                "format": "torch-awp examples, weights",
                "script": run.task.script,
                "epoch": run.counters.epoch,
                "state_dict": run.tested_model.state_dict(),
            },
            unfinished,
        )


def _write_history(
    run: TrainingRun, loss: float, chosen: Agreement | None, log: RunLog | None
) -> None:
    counters = run.counters
    scores = {} if chosen is None else {f"selection_{k}": v for k, v in asdict(chosen).items()}
    counters.history.append(
        {
            "epoch": counters.epoch,
            "step": counters.step,
            "loss": loss,
            "learning_rate": max(run.learning_rates()),
            "seconds": counters.seconds,
            **scores,
        }
    )
    if log is not None:
        log.epoch(counters.history, counters.step)
