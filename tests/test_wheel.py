"""The wheel built from this tree works in an environment that holds torch and nothing else."""

import re
import subprocess
import sys
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

import torch_awp

ROOT = Path(__file__).parents[1]

TRAIN = """
import torch, torch_awp
model = torch.nn.Linear(4, 1)
optimizer = torch_awp.AdversarialWeightPerturbation(torch.optim.AdamW(model.parameters()), 0.1)
def closure():
    optimizer.zero_grad()
    loss = model(torch.ones(2, 4)).square().mean()
    loss.backward()
    return loss
print(optimizer.step(closure).item(), torch_awp.__file__)
"""


def with_requirements(
    name: str, found: dict[str, Distribution], extras: frozenset[str] = frozenset({""})
) -> dict[str, Distribution]:
    """Return a distribution and all that it needs, by name."""
    found[name] = distribution(name)
    for line in found[name].requires or []:
        need = Requirement(line)
        applies = need.marker is None or any(need.marker.evaluate({"extra": e}) for e in extras)
        if applies and (need.name not in found or need.extras):
            with_requirements(need.name, found, frozenset({"", *need.extras}))
    return found


def link_files(of: Distribution, into: Path) -> None:
    for path in of.files or []:
        if ".." not in path.parts and "__pycache__" not in path.parts:
            target = into / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():  # a file that several distributions bring
                target.symlink_to(Path(str(of.locate_file(path))))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python_with_torch_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torch-alone")
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    for each in with_requirements("torch", {}).values():
        link_files(each, site)
    return folder / "bin" / "python"


@pytest.mark.slow
def test_it_installs_and_trains_beside_torch_alone(wheel, python_with_torch_alone, tmp_path):
    (site,) = python_with_torch_alone.parents[1].glob("lib/python*/site-packages")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site]
    subprocess.run([*install, wheel], check=True)
    run = [python_with_torch_alone, "-I", "-c", TRAIN]
    done = subprocess.run(run, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert str(site / "torch_awp") in done.stdout


def test_it_holds_the_package_its_types_and_its_licence_only(wheel):
    listing = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", wheel], check=True, capture_output=True, text=True
    ).stdout
    names = [line.split()[0] for line in listing.splitlines()[1:]]
    assert "torch_awp/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert all(name.startswith(("torch_awp/", "torch_awp-")) for name in names)


def test_it_requires_torch_only(wheel):
    metadata = subprocess.run(
        [sys.executable, "-c", "import sys, zipfile; z = zipfile.ZipFile(sys.argv[1]); "
         "print(z.read(next(n for n in z.namelist() if n.endswith('METADATA'))).decode())", wheel],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:")]
    assert [line for line in required if "extra ==" not in line] == ["Requires-Dist: torch>=2.6"]


def test_an_index_shows_links_and_pictures_that_lead_somewhere(wheel):
    with ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        shown = archive.read(name).decode()
    version = torch_awp.__version__
    targets = re.findall(r"\]\(([^)]+)\)", shown)

    assert [target for target in targets if not re.match(r"#|https://", target)] == []
    assert f"/raw/v{version}/benchmarks/results/pretrained.png" in "".join(targets)
    assert f"/blob/v{version}/examples/RECIPES.md" in "".join(targets)
    assert all("/../" not in target for target in targets)
