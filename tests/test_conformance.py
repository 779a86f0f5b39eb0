"""The paper's released perturbations and the original AWP direction, number for number.

The fixtures in tests/data were computed with the published implementations.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation
from vqa.training.losses import quality_loss

DATA = Path(__file__).parent / "data"
TOLERANCE = {"f64": 1e-14, "f32": 1e-7}
RELEASED_CODE = {"constraint": "element", "epsilon": 1e-6}


def load(file: str, precision: str) -> dict[str, Tensor]:
    arrays = np.load(DATA / file, allow_pickle=False)
    prefix = precision + "/"
    keys = [key for key in arrays.files if key.startswith(prefix)]
    return {key.removeprefix(prefix): torch.from_numpy(np.array(arrays[key])) for key in keys}


def part(arrays: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def named_parameters(arrays: dict[str, Tensor]) -> list[tuple[str, nn.Parameter]]:
    gradients = part(arrays, "grad/")
    params = []
    for name, weight in part(arrays, "weight/").items():
        param = nn.Parameter(weight.clone(), requires_grad=not name.startswith("frozen"))
        param.grad = gradients.get(name)
        params.append((name, param))
    return params


def released_selection(name: str, param: Tensor) -> bool:
    return "weight" in name and param.grad is not None


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("gamma", ["0.01", "0.001", "0.0001"])
def test_released_adversarial_perturbation(precision, gamma):
    arrays = load("weight_perturbation.npz", precision)
    params = named_parameters(arrays)
    optimizer = AdversarialWeightPerturbation(
        torch.optim.SGD(params, lr=0.1), float(gamma), select=released_selection, **RELEASED_CODE
    )
    with optimizer.perturb():
        expected = part(arrays, f"awp/{gamma}/")
        for name, param in params:
            torch.testing.assert_close(
                param.detach(), expected[name], rtol=0, atol=TOLERANCE[precision], msg=name
            )


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("gamma", ["0.01", "0.001", "0.0001"])
def test_released_random_perturbation(precision, gamma):
    arrays = load("weight_perturbation.npz", precision)
    params = named_parameters(arrays)
    optimizer = RandomWeightPerturbation(
        torch.optim.SGD(params, lr=0.1),
        float(gamma),
        select=released_selection,
        generator=torch.Generator().manual_seed(0),
        **RELEASED_CODE,
    )
    with optimizer.perturb():
        expected = part(arrays, f"rwp_seed0/{gamma}/")
        for name, param in params:
            torch.testing.assert_close(
                param.detach(), expected[name], rtol=0, atol=TOLERANCE[precision], msg=name
            )


@pytest.mark.parametrize("precision", ["f64", "f32"])
def test_without_epsilon_the_released_perturbation_differs_by_its_share(precision):
    arrays = load("weight_perturbation.npz", precision)
    params = [(n, p) for n, p in named_parameters(arrays) if released_selection(n, p)]
    expected = part(arrays, "awp/0.01/")
    optimizer = AdversarialWeightPerturbation(
        torch.optim.SGD(params, lr=0.1), 0.01, select=released_selection, constraint="element"
    )
    before = {name: param.detach().clone() for name, param in params}
    with optimizer.perturb():
        for name, param in params:
            share = 1e-6 / max(param.grad.norm().item(), 1e-6)
            step = (expected[name] - before[name]).norm().item()
            difference = (param.detach() - expected[name]).norm().item()
            assert difference <= 2 * share * step + 1e-6 * before[name].norm().item(), name


@pytest.mark.parametrize(("precision", "tolerance"), [("f64", 1e-7), ("f32", 1e-5)])
@pytest.mark.parametrize("form", ["closure", "block"])
def test_released_training_step(precision, tolerance, form):
    arrays = load("awp_training_step.npz", precision)
    model = nn.Sequential()
    model.add_module("backbone", nn.Conv3d(3, 4, 1))
    model.add_module("tanh", nn.Tanh())
    model.add_module("vqa_head", nn.Conv3d(4, 1, 1))
    model.to(arrays["x"].dtype)
    model.load_state_dict(part(arrays, "w0/"))
    groups = [
        {"params": list(model.backbone.named_parameters("backbone")), "lr": 1e-2},
        {"params": list(model.vqa_head.named_parameters("vqa_head"))},
    ]
    optimizer = AdversarialWeightPerturbation(
        torch.optim.AdamW(groups, lr=1e-1, weight_decay=0.05),
        0.01,
        select=released_selection,
        **RELEASED_CODE,
    )
    losses, gradients, places = [], [], []

    def closure() -> Tensor:
        optimizer.zero_grad()
        scores = model(arrays["x"]).mean((2, 3, 4))
        loss = quality_loss(scores, arrays["y"])
        loss.backward()
        losses.append(loss.detach())
        places.append({n: p.detach().clone() for n, p in model.named_parameters()})
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
        return loss

    if form == "closure":
        optimizer.step(closure)
    else:
        closure()
        with optimizer.perturb():
            closure()
        optimizer.step()

    after = {n: p.detach() for n, p in model.named_parameters()}
    for measured, name in [
        (gradients[0], "clean_grad/"),
        (places[1], "w_perturbed/"),
        (gradients[1], "adv_grad/"),
        (after, "w1/"),
    ]:
        # The head's bias has no gradient but rounding: AdamW's first step is its sign.
        expected = {n: t for n, t in part(arrays, name).items() if n != "vqa_head.bias"}
        for key, value in expected.items():
            torch.testing.assert_close(measured[key], value, rtol=0, atol=tolerance, msg=name + key)
    for loss, name in zip(losses, ["clean_loss", "adv_loss"], strict=True):
        torch.testing.assert_close(loss.float(), arrays[name].float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("precision", "tolerance"), [("f64", 1e-10), ("f32", 1e-5)])
def test_original_awp_direction(precision, tolerance):
    """Wu et al. 2020 climb with a proxy model's SGD step; its length drops out of the direction."""
    arrays = load("awp_original_proxy.npz", precision)
    model = nn.Sequential()
    model.add_module("fc1", nn.Linear(5, 7))
    model.add_module("bn", nn.BatchNorm1d(7))
    model.add_module("relu", nn.ReLU())
    model.add_module("fc2", nn.Linear(7, 3))
    model.to(arrays["inputs"].dtype)
    model.load_state_dict(part(arrays, "w0/"))
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD(model.parameters(), lr=0.01), 0.01)
    nn.functional.cross_entropy(model(arrays["inputs"]), arrays["targets"]).backward()
    with optimizer.perturb():
        for name, param in model.named_parameters():
            expected = arrays[f"perturbed/{name}"]
            torch.testing.assert_close(param.detach(), expected, rtol=0, atol=tolerance, msg=name)
    for name, param in model.named_parameters():
        torch.testing.assert_close(param.detach(), arrays[f"restored/{name}"], rtol=0, atol=1e-7)
