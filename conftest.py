"""Pages run as tests; how a test is made says whether it is slow and which others it runs beside.

The fast tier has of each test's product of parameters every value of every axis at least once; the
rest of the product is marked slow. What a whole file shares is made in one process, a page too.
"""

import gc
from collections import Counter, defaultdict
from collections.abc import Iterator

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

PAGES = ["README.md", "RECIPES.md"]
RANKS = {"two_ranks", "four_ranks"}

pytest_collect_file = Sybil(parsers=[PythonCodeBlockParser()], patterns=PAGES).pytest()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Before tests are chosen by their marks and dealt out to processes by their groups."""
    for item in _rest_of_products(items):
        item.add_marker(pytest.mark.slow)
    for item in items:
        if group := _group(item):
            item.add_marker(pytest.mark.xdist_group(group))


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


def _group(item: pytest.Item) -> str | None:
    """Tests of one group run in one process, one after the other; those of none, anywhere."""
    if item.path.suffix == ".md":  # the code of a page shares one namespace
        return item.path.name
    if not isinstance(item, pytest.Function):
        return None
    if RANKS & set(item.fixturenames):
        return "ranks"
    made_once = [
        fixture[-1]
        for fixture in item._fixtureinfo.name2fixturedefs.values()
        if fixture[-1].scope == "module" and fixture[-1].func.__module__ == item.module.__name__
    ]
    return item.path.stem if made_once else None
