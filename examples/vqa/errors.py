"""Errors that a program expects end it with their message, without a traceback."""

import errno
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch_awp

_DEBUG = "--debug"
_INTERRUPTED, _UNREAD = 130, 141  # as shells have it: 128 and the signal's number
# Of a disk, whichever file it was; EDQUOT and ESTALE are unknown on Windows.
_OF_DISKS = {
    getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO", "ESTALE")
}
_HOME = re.compile(r"(?:^|(?<=[=,]))~[^/\\,]*")
_OURS = (str(Path(__file__).resolve().parents[1]), *(str(Path(p)) for p in torch_awp.__path__))


@contextmanager
def expected_errors_in_one_line() -> Iterator[None]:
    """Around a whole program: expected errors go to standard error, with exit status 2.

    Expected is what this repository raises on purpose, and a file or folder that cannot be read or
    written; anything else is a mistake of ours and keeps its traceback, as all does with `--debug`.
    Ctrl-C ends the program with a line and status 130; a reader of its output that has gone away,
    as `head` does, ends it without one, and with 141.

    `~` stands for the home folder wherever a path begins on the command line, since shells leave it
    in --output=~/x and --roots NAME=~/x.
    """
    sys.argv[1:] = [
        _HOME.sub(lambda home: os.path.expanduser(home[0]), word) for word in sys.argv[1:]
    ]
    debug = _DEBUG in sys.argv
    if debug:
        sys.argv.remove(_DEBUG)
    program = Path(sys.argv[0]).name
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        if not _output_is_closed():
            raise
        raise SystemExit(_UNREAD) from None
    except KeyboardInterrupt:
        if debug:
            raise
        print(f"{program}: interrupted", file=sys.stderr)
        raise SystemExit(_INTERRUPTED) from None
    except (ValueError, OSError) as error:
        if debug or not _is_expected(error):
            raise
        print(f"{program}: {_message(error)} ({_DEBUG} shows the traceback)", file=sys.stderr)
        raise SystemExit(2) from None


def _output_is_closed() -> bool:
    """Whether standard output has no reader; what is left for it then goes nowhere."""
    try:
        os.write(sys.stdout.fileno(), b"\n")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _is_expected(error: ValueError | OSError) -> bool:
    if isinstance(error, OSError):
        return error.filename is not None or error.errno in _OF_DISKS
    if type(error).__module__.startswith("vqa."):
        return True
    *_, last = traceback.extract_tb(error.__traceback__)
    return last.filename.startswith(_OURS)


def _message(error: ValueError | OSError) -> str:
    """What the error says; of one that a loader's process sent, the part that is its own."""
    text = str(error)
    if text.startswith("Caught ") and "Original Traceback" in text:
        return text.rstrip().rpartition(f"{type(error).__name__}: ")[2]
    return text
