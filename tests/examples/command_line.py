"""Commands as a user runs them."""

import os
import re
import subprocess
import sys
from pathlib import Path

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
