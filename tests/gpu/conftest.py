"""The contract once more, on an accelerator: `make test-gpu`. Elsewhere it is only collected."""

import importlib
import os

import pytest
import torch

# Without it no sum of cuBLAS can be asked to come out the same each time; read at its first use.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", help="a device to run the tests of tests/gpu on")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.device is None and torch.accelerator.is_available():
        config.option.device = str(torch.accelerator.current_accelerator())
    if config.option.device is None and not config.option.collectonly:
        raise pytest.UsageError("torch sees no accelerator here: tests/gpu needs one to run on")
    if (config.option.device or "").startswith("xla"):  # which torch knows by its package alone
        importlib.import_module("torch_xla")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:  # what torch says of a device, its driver or its compiler decides nothing
        item.add_marker(pytest.mark.filterwarnings(r"default:::torch\."))


@pytest.fixture
def device(pytestconfig: pytest.Config) -> torch.device:
    return torch.device(pytestconfig.option.device)


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """For what only torch.cuda can tell."""
    if device.type != "cuda":
        pytest.skip(f"needs CUDA or ROCm, not {device}")
    return device
