"""The benchmark of reading files, and the memory that reading takes."""

import json

import pytest
from command_line import REPOSITORY, run_command

from benchmarks.pipeline import Benchmark, main


@pytest.mark.slow
def test_reading_a_file_takes_the_memory_of_a_few_frames_however_many_there_are(tmp_path):
    """A frame has 4 MiB as floating-point luma; a second of them, with planes, had two thousand."""
    output = tmp_path / "pipeline.json"
    output.write_text('{"results": "of an earlier run"}')
    settings = ["--measures", "memory", "--memory-heights", "720", "--memory-seconds", "1"]
    run = run_command(REPOSITORY / "benchmarks" / "pipeline.py", *settings, "--output", output)
    assert run.returncode == 0, run.stderr

    found = json.loads(output.read_text())

    assert found["results"] == "of an earlier run"
    grown = {name: videos["720p-1s"] for name, videos in found["memory"]["MiB"].items()}
    assert len(grown) == 8
    assert max(grown.values()) < 150, grown


def test_what_the_stack_costs_is_told_apart_from_the_steps(few_videos, tmp_path):
    output = tmp_path / "pipeline.json"
    main(
        Benchmark(
            measures=("stack",),
            stack_epochs=1,
            rounds=2,
            mini_ugc=few_videos["data_root"],
            output=output,
        )
    )

    shares = json.loads(output.read_text())["stack"]["shares"]
    for name in ("steps", "reading", "choosing, saving, logging"):
        assert 0 < shares[name][1] < 1
