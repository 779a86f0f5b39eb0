"""Adversarial weight perturbation in plain torch: the whole rule, without the package torch_awp.

A layer is a weight `w` with more than one dimension, `||.||` its norm. One training step: climb the
loss to `w + v`, take the gradient there, return to `w` and step. Equations of Yue et al. 2024
(arXiv:2409.14847). `python examples/minimal.py` fits noisy synthetic data plainly and with AWP.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def awp_step(
    model: nn.Module,
    compute_loss: Callable[[], Tensor],
    optimizer: torch.optim.Optimizer,
    gamma: float,
    steps: int = 1,
) -> Tensor:
    """Step with the gradient at `w + v`, and return the loss at `w`."""
    weights = [param for param in model.parameters() if param.requires_grad and param.ndim > 1]
    backups = [weight.detach().clone() for weight in weights]
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        losses.append(compute_loss())
        losses[-1].backward()
        with torch.no_grad():
            for weight, w in zip(weights, backups, strict=True):
                if weight.grad is None or weight.grad.norm() == 0:
                    continue
                radius = gamma * w.norm()
                # Eq. 10: v <- v + (gamma / steps) * ||w|| * g / ||g||
                v = weight - w + radius / steps * weight.grad / weight.grad.norm()
                # Eq. 11 and 12: back onto the ball ||v|| <= gamma * ||w||
                if v.norm() > radius:
                    v *= radius / v.norm()
                weight.copy_(w + v)
    optimizer.zero_grad()
    compute_loss().backward()  # the gradient at w + v
    with torch.no_grad():
        for weight, w in zip(weights, backups, strict=True):
            weight.copy_(w)
    optimizer.step()  # from w
    return losses[0].detach()


if __name__ == "__main__":
    for gamma in (0.0, 0.05):
        torch.manual_seed(0)
        x, noise = torch.rand(1040, 4), torch.randn(40, 1)
        y = x.sin().sum(1, keepdim=True)
        model = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        fit = lambda: nn.functional.mse_loss(model(x[:40]), y[:40] + noise)  # noqa: B023, E731
        for _ in range(500):
            loss = awp_step(model, fit, optimizer, gamma)
        test = nn.functional.mse_loss(model(x[40:]), y[40:])
        print(f"gamma {gamma:g}: training loss {loss:.3f}, test loss {test:.3f}")
