"""A progress bar fills a screen's last line, not a log."""

import itertools
import sys

import pytest

from vqa.processes import progress_bar


@pytest.mark.parametrize("terminal", [True, False])
def test_only_a_terminal_is_refreshed_all_the_time(monkeypatch, capsys, terminal):
    clock = itertools.count(1000.0, 0.05)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setattr("tqdm.std.time", lambda: next(clock))  # seconds, a little more at each look

    with progress_bar("training", 10, "step") as bar:
        capsys.readouterr()  # the bar at 0
        for _ in range(5):
            bar.update()
        shown = capsys.readouterr().err

    assert bool(shown) == terminal


def test_the_last_state_is_shown_everywhere(capsys):
    with progress_bar("training", 3, "step") as bar:
        bar.update(3)

    assert "training: 100%" in capsys.readouterr().err
