"""`examples/minimal.py`, the rule on one page, against the wrapper."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import minimal
from torch_awp import AdversarialWeightPerturbation


@pytest.mark.parametrize("steps", [1, 3])
def test_it_trains_as_the_wrapper_does(steps):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    twin, gamma = copy.deepcopy(model), 0.1
    bases = [torch.optim.AdamW(net.parameters(), lr=1e-2) for net in (model, twin)]
    wrapped = AdversarialWeightPerturbation(bases[1], gamma, steps=steps)
    for _ in range(5):
        x, y = torch.randn(16, 4).double(), torch.randn(16, 1).double()
        loss = minimal.awp_step(
            model, lambda x=x, y=y: nn.functional.mse_loss(model(x), y), bases[0], gamma, steps
        )
        losses = []
        for _ in wrapped.passes():
            wrapped.zero_grad()
            losses.append(nn.functional.mse_loss(twin(x), y))
            losses[-1].backward()
        wrapped.step()
        torch.testing.assert_close(loss, losses[0].detach())
    assert not torch.equal(losses[0], losses[-1])
    torch.testing.assert_close(list(model.parameters()), list(twin.parameters()))


def test_it_needs_nothing_of_the_package_and_runs():
    text = Path(minimal.__file__).read_text("utf-8")
    assert "import torch_awp" not in text
    assert "from torch_awp" not in text
    assert len(text.splitlines()) <= 60
    done = subprocess.run(
        [sys.executable, minimal.__file__], capture_output=True, text=True, check=True
    )
    plain, perturbed = done.stdout.splitlines()
    assert plain.startswith("gamma 0: training loss 0.")
    assert perturbed.startswith("gamma 0.05: training loss 0.")
