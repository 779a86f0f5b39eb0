"""Finished runs on disk, so that an interrupted experiment goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch_awp
from vqa.demo.checkpoints import Checkpoint, save_checkpoint
from vqa.demo.experiment import Correlation, Run
from vqa.io.files import replacing


class RunStore:
    """Runs of one configuration: what each gave as JSON, and the trained model as checkpoint.

    Args:
        folder: where runs of all configurations lie.
        configuration: whatever decides the result of a run besides method and seed; runs made with
            another one, or by other source code, are not picked up.
    """

    def __init__(self, folder: Path, configuration: Mapping[str, object]) -> None:
        described = json.dumps(configuration, sort_keys=True).encode() + _source_code()
        self._folder = folder / hashlib.sha256(described).hexdigest()[:16]

    def load(self, method: str, seed: int) -> Run | None:
        """The finished run, None if it, or its checkpoint, is not there."""
        if not self.checkpoint(method, seed).is_file():
            return None
        try:
            values = json.loads(self._path(method, seed).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        parts = {part: Correlation(**values.pop(part)) for part in ("train", "test", "ood", "gap")}
        return Run(**{**values, **parts, "curve": tuple(values["curve"])})

    def save(self, run: Run, checkpoint: Checkpoint) -> None:
        """Keep a finished run; a process killed meanwhile leaves an unfinished one."""
        save_checkpoint(self.checkpoint(run.method, run.seed), checkpoint)
        with replacing(self._path(run.method, run.seed)) as unfinished:
            unfinished.write_text(json.dumps(asdict(run)), encoding="utf-8")

    def checkpoint(self, method: str, seed: int) -> Path:
        """Where the trained model of a finished run is."""
        return self._folder / f"{method}-{seed}.pt"

    def _path(self, method: str, seed: int) -> Path:
        return self._folder / f"{method}-{seed}.json"


def _source_code() -> bytes:
    """The code that decides a run: the library and this package."""
    if torch_awp.__file__ is None:
        raise RuntimeError("torch_awp is a namespace package: install the library")
    folders = (Path(torch_awp.__file__).parent, Path(__file__).parents[1])
    files = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    return b"".join(file.read_bytes() for file in files)
