"""What a release says of itself agrees, and its workflows call commands that exist."""

import re
import subprocess
from pathlib import Path

import pytest

import torch_awp

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
COMMANDS = sorted({c for path in WORKFLOWS for c in re.findall(r"run: (.+)", path.read_text())})


def found(file: str, pattern: str) -> list[str]:
    return re.findall(pattern, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)


def test_version_changelog_and_citation_agree():
    assert found("CHANGELOG.md", r"^## (\S+)")[0] == torch_awp.__version__
    assert found("CITATION.cff", r"^version: (\S+)") == [torch_awp.__version__]


@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.startswith("python -m ")])
def test_a_workflow_calls_the_makefile(command):
    program, target, *_ = command.split()
    assert program == "make"
    subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_every_promised_python_is_tried_by_the_workflow():
    promised = found("pyproject.toml", r'"Programming Language :: Python :: (3\.\d+)"')
    tried = found(".github/workflows/test.yml", r'"(3\.\d+)"')
    assert promised
    assert set(promised) <= set(tried)


def test_one_file_names_the_owner():
    others = [*ROOT.glob("*.md"), *ROOT.glob("*.cff"), *(ROOT / ".github").rglob("*.yml")]
    assert not [path for path in others if "OWNER" in path.read_text(encoding="utf-8")]
    assert found("pyproject.toml", r"github\.com/(\S+)/torch-awp")
