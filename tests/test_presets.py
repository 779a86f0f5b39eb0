"""The recipes' presets, as they stand there, against the published implementations."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_conformance import TOLERANCE, load, named_parameters, part
from torch import Tensor, nn

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation

RECIPES = Path(__file__).parent.parent / "examples" / "RECIPES.md"
GAMMAS = ["0.01", "0.001", "0.0001"]


def documented(preset: str, params: list[tuple[str, nn.Parameter]]) -> Any:
    """Run the documented code of a preset on a model of these tensors."""
    section = RECIPES.read_text(encoding="utf-8").split("\n## Presets\n")[1]
    (code,) = re.findall(r"```python\n(.*?)```", section.split("\n## ")[0], re.DOTALL)
    names: dict[str, Any] = {
        "AdversarialWeightPerturbation": AdversarialWeightPerturbation,
        "RandomWeightPerturbation": RandomWeightPerturbation,
        "model": SimpleNamespace(named_parameters=lambda: params),
        "torch": torch,
    }
    exec(code, names)
    return names[preset]


def moved(preset: str, params: list[tuple[str, nn.Parameter]], gamma: float) -> dict[str, Tensor]:
    optimizer = documented(preset, params)
    optimizer.param_groups[0]["perturb_gamma"] = gamma
    torch.manual_seed(0)
    with optimizer.perturb():
        return {name: param.detach().clone() for name, param in params}


def assert_equal(measured: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float):
    for name, tensor in measured.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize(
    ("preset", "gamma"),
    [("released", 1e-4), ("released_random", 1e-2), ("original", 1e-2), ("kaggle", 1e-2)],
)
def test_they_have_the_published_magnitudes(preset, gamma):
    assert documented(preset, [("weight", nn.Parameter(torch.ones(2, 2)))]).gamma == gamma


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_released_adversarial_code(precision, gamma):
    arrays = load("weight_perturbation.npz", precision)
    measured = moved("released", named_parameters(arrays), float(gamma))
    assert_equal(measured, part(arrays, f"awp/{gamma}/"), TOLERANCE[precision])


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_released_random_code(precision, gamma):
    """Which makes a clean pass before and moves what that gave a gradient."""
    arrays = load("weight_perturbation.npz", precision)
    params = [(n, p) for n, p in named_parameters(arrays) if p.grad is not None]
    measured = moved("released_random", params, float(gamma))
    assert_equal(measured, part(arrays, f"rwp_seed0/{gamma}/"), TOLERANCE[precision])


@pytest.mark.parametrize(("precision", "tolerance"), [("f64", 1e-10), ("f32", 1e-5)])
def test_original_awp(precision, tolerance):
    arrays = load("awp_original_proxy.npz", precision)
    model = nn.Sequential()
    for name, layer in [
        ("fc1", nn.Linear(5, 7)),
        ("bn", nn.BatchNorm1d(7)),
        ("relu", nn.ReLU()),
        ("fc2", nn.Linear(7, 3)),
    ]:
        model.add_module(name, layer)
    model.to(arrays["inputs"].dtype)
    model.load_state_dict(part(arrays, "w0/"))
    nn.functional.cross_entropy(model(arrays["inputs"]), arrays["targets"]).backward()
    measured = moved("original", list(model.named_parameters()), 0.01)
    assert_equal(measured, part(arrays, "perturbed/"), tolerance)


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_kaggles_recipe(precision, gamma):
    """Its formula, elementwise, on the conformance tensors."""
    params = named_parameters(load("weight_perturbation.npz", precision))
    expected = {}
    for name, param in params:
        w, g = param.detach(), param.grad
        expected[name] = w.clone()
        if param.requires_grad and g is not None and "weight" in name and g.norm() > 0:
            step = 1.0 * g / (g.norm() + 1e-6) * (w.norm() + 1e-6)
            bound = float(gamma) * w.abs()
            expected[name] = torch.min(torch.max(w + step, w - bound), w + bound)
    measured = moved("kaggle", params, float(gamma))
    assert_equal(measured, expected, TOLERANCE[precision])
    assert any(not torch.equal(expected[name], param.detach()) for name, param in params)
