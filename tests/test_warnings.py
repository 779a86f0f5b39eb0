"""Which warnings fail a test: ours, torch's about our use of it; not what others have to mend."""

import warnings

import pytest
import torch
from reference import batch, closure_for, small_net
from torch import nn

from torch_awp import AdversarialWeightPerturbation


def warn_of(module: str, category: type[Warning]) -> None:
    warnings.warn_explicit("mend this", category, f"{module}.py", 1, module)


@pytest.mark.parametrize("category", [UserWarning, RuntimeWarning, FutureWarning])
@pytest.mark.parametrize(
    "module",
    [
        "torch_awp.optimizer",
        "vqa.training.loop",
        "benchmarks.overhead",
        "reference",
        "__main__",
        "torch.optim",
    ],
)
def test_a_warning_that_points_at_us_or_at_torchs_public_modules_is_an_error(module, category):
    with pytest.raises(category, match="mend this"):
        warn_of(module, category)


@pytest.mark.parametrize("category", [UserWarning, RuntimeWarning, DeprecationWarning])
@pytest.mark.parametrize("module", ["torch._dynamo.guards", "numpy.linalg", "importlib._bootstrap"])
def test_a_warning_that_points_at_another_library_is_only_shown(module, category):
    with warnings.catch_warnings(record=True) as shown:
        warn_of(module, category)
    assert len(shown) == 1


def test_our_own_warning_is_an_error():
    model = small_net(torch.bfloat16)
    optimizer = AdversarialWeightPerturbation(torch.optim.SGD(model.parameters(), lr=0.1), 1e-5)
    with pytest.raises(UserWarning, match="gamma"):
        optimizer.step(closure_for(model, batch(torch.bfloat16)))


def test_torchs_warning_of_a_wrong_order_is_an_error():
    optimizer = torch.optim.SGD(small_net().parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)
    with pytest.raises(UserWarning, match=r"`lr_scheduler\.step\(\)` before `optimizer\.step\(\)`"):
        scheduler.step()


def test_torchs_warning_of_an_obsolete_argument_is_an_error():
    with pytest.raises(UserWarning, match="size_average"):
        nn.MSELoss(size_average=True)


def test_torchs_warning_from_below_python_is_an_error():
    inner = torch.ones(1, requires_grad=True) * 2
    with pytest.raises(UserWarning, match="not a leaf"):
        _ = inner.grad
