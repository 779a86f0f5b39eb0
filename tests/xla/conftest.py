"""On a device of torch_xla, which is not the host's memory: `make test-xla`. Elsewhere collected.

Without a TPU that is torch_xla's CPU device: lazy as the others are, and its runtime counts what is
compiled and what is read.
"""

import importlib.util
from types import ModuleType

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    if importlib.util.find_spec("torch_xla") is None and not config.option.collectonly:
        raise pytest.UsageError("torch_xla is not installed here: tests/xla needs it")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:  # what torch_xla says of itself and its devices decides nothing
        item.add_marker(pytest.mark.filterwarnings(r"default:::torch(_xla)?\."))


@pytest.fixture(scope="session")
def xla() -> ModuleType:
    return importlib.import_module("torch_xla")


@pytest.fixture(scope="session")
def metrics(xla: ModuleType) -> ModuleType:
    """What the runtime counts."""
    return importlib.import_module("torch_xla.debug.metrics")


@pytest.fixture
def device(xla: ModuleType) -> torch.device:
    return xla.device()
