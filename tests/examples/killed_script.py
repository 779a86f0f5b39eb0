"""Run a script whose training is killed instead of one of its saves, on a machine of any speed.

`python killed_script.py SAVE script.py ARGUMENTS`; saves are counted from 1.
"""

import os
import runpy
import signal
import sys
from pathlib import Path

from vqa.training.loop import TrainingRun


def kill_instead_of_save(number: int) -> None:
    save, saves = TrainingRun.save, []

    def save_or_die(run: TrainingRun, path: Path) -> None:
        saves.append(path)
        if len(saves) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        save(run, path)

    TrainingRun.save = save_or_die


if __name__ == "__main__":
    kill_instead_of_save(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
