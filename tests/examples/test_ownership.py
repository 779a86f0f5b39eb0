"""A folder or file that a command writes is its own, until it ends in whatever way."""

import subprocess
import sys
import time

import pytest
from command_line import IMPORTABLE

from vqa.io.files import InUseError, owned_file, owned_folder

HOLDER = """
import sys, time
from pathlib import Path
from vqa.io.files import owned_folder
with owned_folder(Path(sys.argv[1])):
    Path(sys.argv[1], "held").touch()
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process to which the folder `out` belongs."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "out", "--seed 1"], env={"PYTHONPATH": IMPORTABLE}
    )
    while not (tmp_path / "out" / "held").exists():
        assert process.poll() is None
        time.sleep(0.02)
    yield process
    process.kill()
    process.wait()


def test_a_second_command_stops_in_one_line_that_names_the_first(holder, tmp_path):
    with pytest.raises(InUseError) as found, owned_folder(tmp_path / "out"):
        pass

    message = str(found.value)
    assert f"process {holder.pid} on " in message
    assert "--seed 1" in message
    assert str(tmp_path / "out") in message
    assert len(message.splitlines()) == 1


def test_a_process_that_was_killed_leaves_no_lock(holder, tmp_path):
    holder.kill()
    holder.wait()

    with owned_folder(tmp_path / "out"):
        pass


@pytest.mark.parametrize("owned", [owned_folder, owned_file])
def test_what_was_given_back_can_be_had_again_also_after_an_error(tmp_path, owned):
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), owned(tmp_path / "new" / "place"):
            raise KeyboardInterrupt


@pytest.mark.parametrize("owned", [owned_folder, owned_file])
def test_it_belongs_to_one_at_a_time_and_its_neighbours_to_others(tmp_path, owned):
    with owned(tmp_path / "a"), owned(tmp_path / "b"):
        with pytest.raises(InUseError), owned(tmp_path / "a"):
            pass
        with pytest.raises(InUseError), owned(tmp_path / "a"):  # the attempt has freed nothing
            pass
