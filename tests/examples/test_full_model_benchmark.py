"""The benchmark of the full model runs from one command and writes what it measured."""

import json

from command_line import REPOSITORY, run_command

TINY = ["--device", "cpu", "--model", "fast_vqa_m", "--batch", "3", "--clip", "2", "32", "32"]


def test_one_command_measures_every_method(tmp_path):
    output = tmp_path / "full-model.json"
    script = REPOSITORY / "benchmarks" / "full_model.py"
    run = run_command(script, *TINY, "--rounds", "2", "--output", output)
    assert run.returncode == 0, run.stderr
    document = json.loads(output.read_text(encoding="utf-8"))
    assert list(document["costs"]) == ["plain", "RWP", "AWP", "AWP, update"]
    for cost in document["costs"].values():
        assert min(cost["seconds"]) > 0
        assert cost["clips_per_second"] > 0
        assert cost["peak_bytes"] is None  # only a GPU's allocator counts
    assert document["costs"]["plain"]["times_plain"] == [1.0, 1.0, 1.0]
