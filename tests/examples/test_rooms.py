"""A folder for each stage of the way from a file to a result, and imports one way between them."""

import ast
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "examples"
MOST_MODULES = 18

# What the modules of a folder may import beside one another. Of the modules that lie beside the
# folders only the store imports something of the package.
COMMON = {"errors", "figures", "metrics", "processes", "provenance"}
PLAN = {
    "io": set(),
    "synthetic": {"io", "processes"},
    "datasets": {"io", "synthetic"},
    "models": set(),
    "sampling": {"io", "models"},
    "features": {"io", "models", "processes"},
    "training": {"io", "synthetic", "datasets", "models", "metrics", "processes", "provenance"},
    "scoring": {"io", "datasets", "training"},
    "demo": {"io", "datasets", "training", "store", *COMMON},
    "reproduction": {"io", "datasets", "store", *COMMON},
    "store": {"io"},
    **{name: set() for name in COMMON},
}


def imports(file: Path) -> Iterator[str]:
    """Dotted names of what a file imports."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide where they lead"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules() -> dict[Path, str]:
    """Every module of the package with its folder, or its own name where it lies beside them."""
    package = EXAMPLES / "vqa"
    files = [file for file in package.rglob("*.py") if file.parent != package]
    alone = [file for file in package.glob("*.py") if file.name != "__init__.py"]
    return {
        **{file: file.relative_to(package).parts[0] for file in files},
        **{file: file.stem for file in alone},
    }


def test_every_module_has_a_place_in_the_plan():
    assert set(modules().values()) == set(PLAN)


@pytest.mark.parametrize("room", sorted(PLAN))
def test_a_folder_imports_what_the_plan_lets_it_import(room):
    for file, own in modules().items():
        if own == room:
            parts = [name.split(".") for name in imports(file)]
            led = {name[1] for name in parts if name[0] == "vqa" and len(name) > 1}
            assert led <= {room, *PLAN[room]}, file


def test_the_plan_leads_one_way():
    assert len(list(TopologicalSorter(PLAN).static_order())) == len(PLAN)


def test_no_folder_is_too_full_to_look_through():
    counts = Counter(own for file, own in modules().items() if file.name != "__init__.py")

    assert max(counts.values()) <= MOST_MODULES


def test_programs_are_imported_by_programs_alone_and_the_library_knows_neither():
    programs = {file.stem for file in EXAMPLES.glob("*.py")}
    for file in [*modules(), *(REPOSITORY / "torch_awp").rglob("*.py")]:
        assert not programs & {name.split(".")[0] for name in imports(file)}, file
    for file in (REPOSITORY / "torch_awp").rglob("*.py"):
        assert "vqa" not in {name.split(".")[0] for name in imports(file)}, file
