"""What is wrong with files or settings is one line, a mistake of the program is a traceback."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import IMPORTABLE, call_command, run_command

from vqa.errors import expected_errors_in_one_line
from vqa.io.video import VideoError
from vqa.training.evaluate import peak_memory

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def command(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program.py"])
    return sys.argv


def raised(error, capsys):
    with pytest.raises(SystemExit) as end, expected_errors_in_one_line():
        raise error
    printed = capsys.readouterr()
    assert printed.out == ""
    return end.value.code, printed.err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (VideoError("a.mp4: holds no video"), "a.mp4: holds no video"),
        (FileNotFoundError(2, "No such file", "b"), "[Errno 2] No such file: 'b'"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
    ],
)
def test_an_expected_error_is_its_message_and_status_2(command, capsys, error, line):
    assert raised(error, capsys) == (2, f"program.py: {line} (--debug shows the traceback)\n")


def test_of_an_error_in_a_loaders_process_its_own_message_is_left(command, capsys):
    text = (
        "Caught VideoError in DataLoader worker process 0.\nOriginal Traceback (most recent call"
        " last):\n  File ...\nvqa.io.video.VideoError: a.mp4: holds no video\n"
    )

    _, line = raised(VideoError(text), capsys)

    assert line == "program.py: a.mp4: holds no video (--debug shows the traceback)\n"


def test_a_mistake_of_the_program_keeps_its_traceback(command):
    with pytest.raises(ValueError, match="invalid literal"), expected_errors_in_one_line():
        int("x")
    with pytest.raises(KeyError), expected_errors_in_one_line():
        {}["x"]


def test_ctrl_c_is_a_line_and_the_status_of_shells(command, capsys):
    assert raised(KeyboardInterrupt(), capsys) == (130, "program.py: interrupted\n")


def test_debug_shows_every_traceback(command):
    command.append("--debug")

    with pytest.raises(VideoError), expected_errors_in_one_line():
        raise VideoError("a.mp4: holds no video")
    assert command == ["program.py"]


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("fast_vqa.py", ["tiny", "--gamma", "-1"], "gamma: expected a finite number from 0"),
        ("fast_vqa.py", ["tiny", "--dataset", "list", "--data-root", "/nowhere"], "nowhere"),
        ("landscape.py", ["--checkpoint", "/nowhere.pt"], "nowhere.pt: expected a checkpoint"),
        ("reproduce.py", ["table99"], "exhibits: expected some of table1"),
    ],
)
def test_scripts_end_so(script, flags, message):
    done = call_command(EXAMPLES / script, *flags)

    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_script_in_a_process_of_its_own_ends_so():
    done = run_command(EXAMPLES / "landscape.py", "--checkpoint", "/nowhere.pt")

    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_a_reader_that_has_gone_away_is_no_mistake(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "from vqa.errors import expected_errors_in_one_line\n"
        "with expected_errors_in_one_line():\n"
        "    print('x' * 1_000_000)\n"
    )
    reading, writing = os.pipe()
    os.close(reading)

    done = subprocess.run(
        [sys.executable, program],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": IMPORTABLE},
    )
    os.close(writing)

    assert (done.returncode, done.stderr) == (141, "")


def test_the_home_folder_is_found_wherever_a_path_begins(command, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    command += ["--output=~/x", "~/y", "--roots", "a=~/b,~/c.txt", "d~e", "~$f", "--only=~"]

    with expected_errors_in_one_line():
        assert command[1:3] == ["--output=/home/me/x", "/home/me/y"]
        assert command[3:5] == ["--roots", "a=/home/me/b,/home/me/c.txt"]
        assert command[5:] == ["d~e", "~$f", "--only=/home/me"]


ONLY_POSIX = {"resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog"}


def test_no_script_imports_at_its_top_what_windows_lacks():
    found = []
    for file in EXAMPLES.rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in getattr(node, "names", [])]
            names += [getattr(node, "module", None)] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Import | ast.ImportFrom):
                found += [(file.name, name) for name in names if name in ONLY_POSIX]

    assert found == []


def test_where_a_process_does_not_know_its_memory_none_is_told(monkeypatch):
    assert peak_memory(torch.device("cpu")) > 10**7

    monkeypatch.setattr(sys, "platform", "win32")

    assert peak_memory(torch.device("cpu")) is None
