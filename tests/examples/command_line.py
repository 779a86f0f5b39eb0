"""Commands as a user runs them: each in a process of its own, or in the one of the tests."""

import contextlib
import io
import os
import re
import runpy
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
IMPORTABLE = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "examples")])
# The rule of pyproject.toml for the tests' own process, by file instead of module.
OURS = rf"{re.escape(str(REPOSITORY))}/(?:torch_awp|examples|benchmarks)/|/torch/(?!_)"
WARNING = re.compile(rf"(?:{OURS})[^:\r\n]*:\d+: \w*Warning: .*")


def run_command(*command: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments, in a folder if one is given.

    Raises:
        AssertionError: the user is shown a warning of ours, or of torch's about our use of it.
    """
    done = subprocess.run(
        [sys.executable, "-W", "default", *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": IMPORTABLE},
    )
    shown = WARNING.findall(done.stderr)
    assert not shown, "\n".join(shown)
    return done


def call_command(
    script: Path, *arguments: object, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script as `run_command` does, but in this process.

    A warning for which `run_command` raises is an error in the script here, as in any test.
    """
    command = [str(script), *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", command)
        patch.chdir(folder or Path.cwd())
        status = _status_of(script)
    return subprocess.CompletedProcess(command, status, out.getvalue(), err.getvalue())


def _status_of(script: Path) -> int:
    """With what Python would end after running the script."""
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


IN_THIS_PROCESS_AND_ITS_OWN = pytest.mark.parametrize(
    "run", [call_command, pytest.param(run_command, marks=pytest.mark.slow)], ids=["called", "run"]
)
