"""The overhead benchmark runs from one command and writes what it measured."""

import json

from command_line import IN_THIS_PROCESS_AND_ITS_OWN, REPOSITORY

TINY = ["--small-tensors", "3", "--rounds", "2", "--steps", "2", "--batch", "2", "--threads", "1"]


@IN_THIS_PROCESS_AND_ITS_OWN
def test_one_command_measures_and_writes_every_comparison(tmp_path, run):
    output = tmp_path / "overhead.json"
    command = [REPOSITORY / "benchmarks" / "overhead.py", "--shapes", "small", *TINY]
    done = run(*command, "--output", output)
    assert done.returncode == 0, done.stderr
    document = json.loads(output.read_text(encoding="utf-8"))
    assert document["threads"] == 1
    assert set(document["versions"]) == {"torch", "torchvision", "pytorch_optimizer"}
    small = document["perturb_and_restore"]["small"]
    assert (small["tensors"], small["elements"]) == (3, 3 * 64 * 64)
    assert all(spread["median"] > 0 for spread in small["milliseconds"].values())
    aims = {entry["name"]: entry["aim"] for entry in small["ratios"]}
    assert aims["layer / copy"] == 2.4
    assert aims["element / copy"] == 4.5
    assert small["costs"]["layer"]["waits"] == 0
    # A copy of the tensors at first; later it is there.
    assert 1 <= small["costs"]["layer"]["first peak"] <= 1.1
    assert small["costs"]["layer"]["later peak"] <= 0.1
    for ratios in document["training_steps"].values():
        assert ratios[0]["times"] == {"low": 1.0, "median": 1.0, "high": 1.0}
    assert "aim 2.4" in done.stdout
