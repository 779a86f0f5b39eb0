"""Where a result comes from: versions, revision, machine."""

import hashlib
import platform
import shutil
import subprocess
from collections.abc import Iterable
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch

import torch_awp

_PACKAGES = ("torch", "torchvision", "timm", "av", "numpy", "scipy")
_FORM = ("--dirty", "--abbrev=12")
_REPOSITORY = Path(__file__).resolve().parents[2]


def provenance(device: torch.device) -> dict[str, object]:
    """Versions, git revision, device and the time (UTC), to be kept with every result."""
    return {
        "versions": versions(_PACKAGES),
        "git_revision": git_revision(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of Python, torch_awp and some installed packages."""
    installed = {package: version(package) for package in packages}
    return {"python": platform.python_version(), "torch_awp": torch_awp.__version__, **installed}


def source_digest() -> str:
    """Of the code that decides a result: the library and the examples."""
    digest = hashlib.sha256()
    for folder in (*map(Path, torch_awp.__path__), _REPOSITORY / "examples"):
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"cpu ({platform.processor() or platform.machine()})"


def git_revision() -> str | None:
    """Commit of the source code, with `-dirty` after it if files differ; None outside a clone."""
    git = shutil.which("git")
    if git is None:
        return None
    described = subprocess.run(  # noqa: S603  # a fixed command
        [git, "-C", str(_REPOSITORY), "describe", "--always", "--exclude=*", *_FORM],
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or None
