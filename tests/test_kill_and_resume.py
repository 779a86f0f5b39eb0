"""A run ended by SIGKILL and resumed from its last checkpoint ends at the same weights, bitwise."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import killed_run
import pytest
import torch
from reference import same_bits
from tiers import first_fast


def killed_at_a_random_call(folder: Path, wrap: str) -> None:
    calls = killed_run.CALLS[wrap]
    # The first checkpoint is there by then.
    call = random.Random(f"{wrap}, seed 3").randrange(calls // 4, calls)
    done = subprocess.run(
        [sys.executable, killed_run.__file__, str(folder), wrap, str(call)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("wrap", first_fast(killed_run.WRAPS))
def test_a_killed_run_resumes_to_the_weights_of_the_uninterrupted_one(wrap, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir()
    whole.mkdir()
    killed_at_a_random_call(killed, wrap)
    checkpoint = torch.load(killed / "last.pt", weights_only=True)
    assert 0 < checkpoint["step"] < killed_run.STEPS
    assert same_bits(killed_run.train(killed, wrap), killed_run.train(whole, wrap))
