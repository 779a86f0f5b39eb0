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


@pytest.fixture(scope="module")
def killed_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For each way to perturb, what a run left behind that was killed at a random call."""
    chance = random.Random(3)
    folders = {wrap: tmp_path_factory.mktemp(wrap) for wrap in killed_run.WRAPS}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = []
    for wrap, folder in folders.items():
        calls = killed_run.CALLS[wrap]
        call = chance.randrange(calls // 4, calls)  # the first checkpoint is there by then
        command = [sys.executable, killed_run.__file__, str(folder), wrap, str(call)]
        processes.append(subprocess.Popen(command, env=environment))
    assert [process.wait(600) for process in processes] == [-signal.SIGKILL] * len(processes)
    return folders


@pytest.mark.parametrize("wrap", killed_run.WRAPS)
def test_a_killed_run_resumes_to_the_weights_of_the_uninterrupted_one(
    wrap, killed_folders, tmp_path
):
    checkpoint = torch.load(killed_folders[wrap] / "last.pt", weights_only=True)
    assert 0 < checkpoint["step"] < killed_run.STEPS
    resumed = killed_run.train(killed_folders[wrap], wrap)
    assert same_bits(resumed, killed_run.train(tmp_path, wrap))
