"""What the pages say: links lead somewhere, commands are understood by the programs they name."""

import argparse
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
import tyro
from command_line import REPOSITORY

FOLDERS = (".github", "benchmarks", "examples", "tests")
PAGES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for path in (
        *REPOSITORY.glob("*.md"),
        *(p for f in FOLDERS for p in (REPOSITORY / f).rglob("*.md")),
    )
)
# Where the repository's host keeps the runs of its workflows, as seen from README.
WORKFLOWS = "../../actions/workflows/"
# What stands for something of the reader's.
NOT_OURS = ("git", "pip", "uv", "mkdir", "cat", "END", "#SBATCH")


def text_of(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """The names that a page's headings get where it is shown."""
    without_code = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", without_code, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_pages_are_found():
    assert {"README.md", "examples/README.md", "examples/RECIPES.md"} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\((?!\w+:)([^)\s]+)\)", text_of(page))
    dead = []
    for link in links:
        if link.startswith(WORKFLOWS):
            link = f".github/workflows/{link.removeprefix(WORKFLOWS).removesuffix('/badge.svg')}"
        name, _, anchor = link.partition("#")
        target = (REPOSITORY / page).parent / name if name else REPOSITORY / page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)

    assert not dead


def commands() -> list[tuple[str, str]]:
    """Every command that a page shows, on one line."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", text_of(page), re.DOTALL):
            block = re.sub(r"<<END\n.*?\nEND\n", "\n", block.replace("\\\n", " "), flags=re.DOTALL)
            found += [
                (page, line) for line in block.splitlines() if shlex.split(line, comments=True)
            ]
    return found


class Understood(SystemExit):
    """A program has taken its arguments and would begin."""


@pytest.mark.parametrize(("page", "command"), commands())
def test_every_command_is_understood(page, command, monkeypatch):
    program, *arguments = shlex.split(command, comments=True)
    if program == "make":
        targets = re.findall(r"^([\w-]+):", text_of("Makefile"), re.MULTILINE)
        assert set(arguments) <= set(targets)
    elif program in ("python", ".venv/bin/python") and arguments[0] == "-m":
        assert all((REPOSITORY / name).exists() for name in arguments if "/" in name)
    elif program == "python":
        with pytest.raises(Understood):
            run_until_understood(REPOSITORY / arguments[0], arguments[1:], monkeypatch)
    else:
        assert program in NOT_OURS


def run_until_understood(script: Path, arguments: list[str], monkeypatch: Any) -> None:
    def then_stop(parse: Any) -> Any:
        def parsed(*args: Any, **kwargs: Any) -> NoReturn:
            parse(*args, **kwargs)
            raise Understood

        return parsed

    monkeypatch.setattr(tyro, "cli", then_stop(tyro.cli))
    parse_args = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", then_stop(parse_args))
    monkeypatch.setattr(
        tyro.extras, "overridable_config_cli", then_stop(tyro.extras.overridable_config_cli)
    )
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    runpy.run_path(str(script), run_name="__main__")
