"""The training scripts by the names that their checkpoints hold."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fast_vqa
import sama_iqa
import sama_vqa
import simple_vqa
from vqa.io.files import MediaKind
from vqa.training.checkpoint import Checkpoint, CheckpointError
from vqa.training.settings import Settings, restored
from vqa.training.task import Task

S = TypeVar("S")


@dataclass(frozen=True)
class TrainingScript:
    """What one of them trains: the kind of its settings, its task of such settings, its files."""

    settings: type[Settings]
    task: Callable[[Any], Task]
    kind: MediaKind = "video"


SCRIPTS = {
    "fast_vqa": TrainingScript(fast_vqa.FastVqa, fast_vqa.task),
    "sama_vqa": TrainingScript(sama_vqa.SamaVqa, sama_vqa.task),
    "sama_iqa": TrainingScript(sama_iqa.SamaIqa, sama_iqa.task, "image"),
    "simple_vqa": TrainingScript(simple_vqa.SimpleVqa, simple_vqa.task),
}


def script_and_settings(path: Path, checkpoint: Checkpoint) -> tuple[TrainingScript, Settings]:
    """How the model of a checkpoint, read from `path`, was trained.

    Raises:
        CheckpointError: by another script, or with settings that there are no longer.
    """
    if checkpoint.script not in SCRIPTS:
        names = ", ".join(SCRIPTS)
        raise CheckpointError(
            f"{path}: expected a checkpoint of {names}, got one of {checkpoint.script!r}"
        )
    script = SCRIPTS[checkpoint.script]
    return script, restored_settings(script.settings, path, checkpoint)


def restored_settings(kind: type[S], path: Path, checkpoint: Checkpoint) -> S:
    """Settings of that kind from a checkpoint that was read from `path`.

    Raises:
        CheckpointError: there are no such settings any longer.
    """
    try:
        return restored(kind, checkpoint.settings)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: its settings cannot be used, {error}") from error
