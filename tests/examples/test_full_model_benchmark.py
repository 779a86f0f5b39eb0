"""The benchmark of the full model runs from one command and writes what it measured."""

import json

import pytest
from command_line import REPOSITORY, call_command, run_command

import fast_vqa
from vqa.models import build_model

SCRIPT = REPOSITORY / "benchmarks" / "full_model.py"
TINY = ["--device", "cpu", "--model", "fast_vqa_m", "--batch", "3", "--clip", "2", "32", "32"]


def assert_every_method_is_measured(run, output):
    done = run(SCRIPT, *TINY, "--rounds", "2", "--output", output)
    assert done.returncode == 0, done.stderr
    document = json.loads(output.read_text(encoding="utf-8"))
    assert list(document["costs"]) == ["plain", "RWP", "AWP", "AWP, update"]
    for cost in document["costs"].values():
        assert min(cost["seconds"]) > 0
        assert cost["clips_per_second"] > 0
        assert cost["peak_bytes"] is None  # only a GPU's allocator counts
    assert document["costs"]["plain"]["times_plain"] == [1.0, 1.0, 1.0]


def test_every_method_is_measured_with_a_smaller_model(tmp_path, monkeypatch):
    def small(name, **settings):
        return build_model("tiny_fast_vqa", width=4)

    monkeypatch.setattr(fast_vqa, "build_model", small)

    assert_every_method_is_measured(call_command, tmp_path / "full-model.json")


@pytest.mark.slow
def test_one_command_measures_every_method(tmp_path):
    assert_every_method_is_measured(run_command, tmp_path / "full-model.json")
