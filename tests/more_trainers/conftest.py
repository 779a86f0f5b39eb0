import pytest

# What these packages use although torch deprecates it.
DEPRECATED = ["`torch.jit.script` is deprecated"]


def pytest_configure(config: pytest.Config) -> None:
    for message in DEPRECATED:
        config.addinivalue_line("filterwarnings", f"ignore:{message}")
