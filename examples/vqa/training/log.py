"""What a training run writes down while it goes on: a CSV file, and events for TensorBoard."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from vqa.io.files import replacing


class RunLog:
    """log.csv with a row per epoch, and events with a point per step.

    Args:
        folder: where they go.
        done: steps that were taken before. Events of later ones, which an interrupted session has
            left, are hidden: they come again.
    """

    def __init__(self, folder: Path, done: int) -> None:
        self._table = folder / "log.csv"
        self._events = SummaryWriter(str(folder / "events"), purge_step=done + 1)

    def step(self, number: int, loss: float, learning_rates: Sequence[float]) -> None:
        """Note a step."""
        self._events.add_scalar("loss", loss, number)
        for group, rate in enumerate(learning_rates):
            self._events.add_scalar(f"learning_rate/{group}", rate, number)

    def epoch(self, history: Sequence[Mapping[str, float]], step: int) -> None:
        """Note an epoch, the last of `history`, after a step; the table holds all of them."""
        for name, value in history[-1].items():
            self._events.add_scalar(f"epoch/{name}", value, step)
        self.flush()
        with replacing(self._table) as unfinished, unfinished.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(history[-1]))
            writer.writeheader()
            writer.writerows(history)

    def flush(self) -> None:
        """Have all events on disk."""
        self._events.flush()

    def close(self) -> None:
        """Write what is still in memory."""
        self._events.close()
