"""Draw mistakes at random, make each in a copy of this repository, and see which tests notice.

`python tests/mutants.py FOLDER` goes on where it stopped, and writes a line for every mistake to
FOLDER/mutants.jsonl: where it is, and the first test that fails, in which tier. A mistake that only
slow tests notice names a test that belongs into the fast tier. It takes hours: run it with `nice`.
"""

import argparse
import ast
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
LIBRARY, EXAMPLES = "torch_awp", "examples/vqa"
PARTS = {
    LIBRARY: [LIBRARY],
    EXAMPLES: [f"{EXAMPLES}/{name}" for name in ("datasets", "sampling", "scoring", "training")],
}
OPPOSITE = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
HOURS = 3600


@dataclass(frozen=True)
class Mutant:
    """One expression or statement of a file, and what stands there instead."""

    path: str
    line: int
    kind: str
    before: str
    after: str
    start: int
    end: int


def mutants_of(tree: Path, path: Path) -> Iterator[Mutant]:
    """Every mistake that can be made in a file."""
    text = path.read_bytes()
    lines = [0]
    for line in text.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    module = ast.parse(text)
    annotations = {
        id(part)
        for node in ast.walk(module)
        for hint in (getattr(node, "annotation", None), getattr(node, "returns", None))
        if hint is not None
        for part in ast.walk(hint)
    }
    for node in ast.walk(module):
        if id(node) in annotations:
            continue
        for kind, part, after in changes(node):
            start = lines[part.lineno - 1] + part.col_offset
            end = lines[part.end_lineno - 1] + part.end_col_offset
            before = text[start:end].decode()
            where = path.relative_to(tree).as_posix()
            yield Mutant(where, part.lineno, kind, before, after, start, end)


def changes(node: ast.AST) -> Iterator[tuple[str, ast.AST, str]]:
    """Kind of the mistake, the part of the source and its replacement."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in OPPOSITE:
        ops = [OPPOSITE[type(node.ops[0])](), *node.ops[1:]]
        yield "comparison", node, f"({ast.unparse(ast.Compare(node.left, ops, node.comparators))})"
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "constant", node, str(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield "constant", node, f"({node.value!r} + 1)"
    elif isinstance(node, ast.If | ast.IfExp):
        yield "swapped branch", node.test, f"(not ({ast.unparse(node.test)}))"
    elif isinstance(node, ast.Raise | ast.AugAssign) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        yield "dropped statement", node, "pass"


def drawn(tree: Path, number: int, seed: int) -> list[Mutant]:
    """As many of the library as of the examples."""
    chance, found = random.Random(seed), []
    for folders in PARTS.values():
        files = sorted(path for name in folders for path in (tree / name).rglob("*.py"))
        every = [mutant for path in files for mutant in mutants_of(tree, path)]
        found.append(chance.sample(every, number // len(PARTS)))
    return [mutant for pair in zip(*found, strict=True) for mutant in pair]


def stages(tree: Path, mutant: Mutant) -> Iterator[tuple[str, list[str]]]:
    """Tiers and what to run of them: first where the mistake is likely to be noticed."""
    module = Path(mutant.path).stem
    if mutant.path.startswith(LIBRARY):
        files = [*sorted(tree.glob("tests/test_*.py")), *sorted(tree.glob("tests/trainers/test_*"))]
        near, side = [f for f in files if module in f.stem], [*files, tree / "torch_awp"]
    else:
        side = sorted(tree.glob("tests/examples/test_*.py"))
        name = re.compile(rf"vqa\.{Path(mutant.path).parent.name}(\.{module}| import)\b")
        near = [f for f in side if module in f.stem or name.search(f.read_text("utf-8"))]
    if near:
        yield "not slow", [str(path) for path in near]
    yield "not slow", [str(path) for path in side]
    yield "slow", [str(path) for path in near or side]


def noticed_by(tree: Path, mutant: Mutant) -> tuple[str | None, str]:
    """Tier and first test that fails; no tier if none does."""
    for tier, paths in stages(tree, mutant):
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-m", tier, *paths]
        try:
            done = subprocess.run(
                command, cwd=tree, capture_output=True, text=True, check=False, timeout=2 * HOURS
            )
        except subprocess.TimeoutExpired:
            return tier, "without end"
        if done.returncode not in (0, 5):  # 5: there was nothing to run
            failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
            return tier, failed[0] if failed else done.stdout[-300:]
    return None, ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--number", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    tree, results = asked.folder / "tree", asked.folder / "mutants.jsonl"
    if not tree.exists():
        subprocess.run(["git", "clone", "--quiet", REPOSITORY, tree], check=True)
    subprocess.run(["git", "checkout", "--quiet", "."], cwd=tree, check=True)
    results.touch()
    known = {json.loads(line)["number"] for line in results.read_text("utf-8").splitlines()}
    for number, mutant in enumerate(drawn(tree, asked.number, asked.seed)):
        if number in known:
            continue
        path = tree / mutant.path
        whole = path.read_bytes()
        path.write_bytes(whole[: mutant.start] + mutant.after.encode() + whole[mutant.end :])
        tier, test = noticed_by(tree, mutant)
        path.write_bytes(whole)
        found = {"number": number, **asdict(mutant), "tier": tier, "test": test}
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        print(f"{number:3d} {mutant.path}:{mutant.line} {mutant.kind}: {tier} {test}", flush=True)


if __name__ == "__main__":
    main()
