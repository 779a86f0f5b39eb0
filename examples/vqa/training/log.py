"""What a training run writes down while it goes on: a CSV file, and events for TensorBoard."""

import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]
from torch.utils.tensorboard.summary import scalar

from vqa.io.files import write_csv, writing


class RunLog:
    """log.csv with a row per epoch, and events with a point per step.

    Events of steps after those `done`, which an interrupted session has left, are hidden: they come
    again.
    """

    def __init__(self, folder: Path, done: int) -> None:
        self._table = folder / "log.csv"
        # TensorBoard reads them in the order of their names.
        name = f"events.out.tfevents.{time.time():.6f}.{platform.node()}"
        self._path = folder / "events" / name
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Not SummaryWriter, whose thread ends with a traceback where a disk is full.
        self._events = RecordWriter(self._path.open("wb"))
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=done + 1, session_log=SessionLog(status=SessionLog.START)))

    def step(self, number: int, loss: float, learning_rates: Sequence[float]) -> None:
        self._add("loss", loss, number)
        for group, rate in enumerate(learning_rates):
            self._add(f"learning_rate/{group}", rate, number)

    def epoch(self, history: Sequence[Mapping[str, float]], step: int) -> None:
        """Note an epoch, the last of `history`, after a step; the table holds all of them."""
        for name, value in history[-1].items():
            self._add(f"epoch/{name}", value, step)
        self.flush()
        header = list(history[-1])
        write_csv(self._table, header, ([row[name] for name in header] for row in history))

    def flush(self) -> None:
        with writing(self._path):
            self._events.flush()

    def close(self) -> None:
        with writing(self._path):
            self._events.close()

    def _add(self, name: str, value: float, step: int) -> None:
        self._write(Event(step=step, summary=scalar(name, value)))  # type: ignore[no-untyped-call]

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        with writing(self._path):
            self._events.write(event.SerializeToString())
