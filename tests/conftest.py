from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings
from ranks import Ranks

# How long an example takes, or the drawing of one, is a matter of the machine.
ANY_MACHINE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fast", ANY_MACHINE, max_examples=15)
settings.register_profile("full", ANY_MACHINE, max_examples=100)


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("fast" if config.option.markexpr == "not slow" else "full")


@pytest.fixture(autouse=True, scope="module")
def _reproducible_module() -> None:
    """For the fixtures of a module, which are made before those of its first test."""
    _begin_alike()


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    _begin_alike()


def _begin_alike() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # with another number, sums are rounded otherwise


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    yield from _ranks(2, tmp_path_factory)


@pytest.fixture(scope="session")
def four_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    yield from _ranks(4, tmp_path_factory)


def _ranks(size: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    ranks = Ranks(size, tmp_path_factory.mktemp(f"ranks{size}"))
    yield ranks
    ranks.stop()
