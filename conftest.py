"""Pages run as tests; how a test is made says whether it is slow and which others it runs beside.

The fast tier has of each test's product of parameters every value of every axis at least once; the
rest of the product is marked slow. What a whole file shares is made in one process, a page too.
"""

import gc
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser


def _readers_own(namespace: dict[str, Any]) -> None:
    """What README.md leaves to its reader: a model that returns its loss, and data."""
    import torch

    class Regression(torch.nn.Linear):
        def forward(self, x: Any, y: Any = None) -> Any:
            outputs = super().forward(x)
            return outputs if y is None else torch.nn.functional.mse_loss(outputs, y)

    torch.manual_seed(0)
    loader = [(torch.randn(32, 8), torch.randn(32, 1)) for _ in range(4)]
    loss_fn = torch.nn.functional.mse_loss
    namespace.update(torch=torch, model=Regression(8, 1), loader=loader, loss_fn=loss_fn)


_parsers = [PythonCodeBlockParser()]
pytest_collect_file = (
    Sybil(parsers=_parsers, patterns=["README.md"], setup=_readers_own)
    + Sybil(parsers=_parsers, patterns=["RECIPES.md"])
).pytest()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Before tests are chosen by their marks."""
    for item in _rest_of_products(items):
        item.add_marker(pytest.mark.slow)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deal tests out to processes by `_group`.

    pytest-xdist 3.8 appends its groups to the tests' names, in a way that pytest 9.2 does not see.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(config.rootpath / nodeid.partition("::")[0]) or nodeid

    return ByGroup(config, log) if config.getvalue("dist") == "loadgroup" else None


def pytest_collection_finish() -> None:
    """What was imported is not gone through again by each of the tests' garbage collections."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # so that all of it ends as ever


def _rest_of_products(items: list[pytest.Item]) -> Iterator[pytest.Function]:
    """Combinations of parameters all of whose values another combination has."""
    products = defaultdict(list)
    for item in items:
        if hasattr(item, "callspec") and not item.get_closest_marker("slow"):
            products[item.nodeid.partition("[")[0]].append(item)
    for product in products.values():
        rest, tried = list(product), Counter()
        while missing := set().union(*map(_values, product)) - tried.keys():
            # Of those with as many new values, the one whose others were tried least.
            chosen = min(
                rest, key=lambda item: (-len(missing & _values(item)), _tried(item, tried))
            )
            tried.update(_values(chosen))
            rest.remove(chosen)
        yield from rest


def _values(item: pytest.Function) -> set[tuple[int, str]]:
    """By number of the axis, which may have several parameters, and by name of the value."""
    return set(enumerate(item.callspec._idlist))


def _tried(item: pytest.Function, tried: Counter[tuple[int, str]]) -> int:
    return sum(tried[value] for value in _values(item))


@cache
def _group(path: Path) -> str | None:
    """Tests of one group run in one process, one after the other; those of none, anywhere."""
    text = path.read_text(encoding="utf-8")
    if "two_ranks" in text or "four_ranks" in text:  # processes that stay for all who ask
        return "ranks"
    if path.suffix == ".md" or 'scope="module"' in text:
        return str(path)
    return None
