"""A training run that may be killed at any closure call, and what resumes it."""

import os
import signal
from pathlib import Path
from typing import Any

import torch
from reference import loss_of
from torch import Tensor, nn

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation

STEPS = 12
WRAPS = {
    "awp": lambda base: AdversarialWeightPerturbation(base, 0.1, steps=2),
    "awp-interval": lambda base: AdversarialWeightPerturbation(base, 0.1, interval=3, start_step=1),
    "rwp": lambda base: RandomWeightPerturbation(
        base, 0.1, interval=2, generator=torch.Generator().manual_seed(5)
    ),
}

CALLS = {"awp": 3 * STEPS, "awp-interval": STEPS + 4, "rwp": STEPS}


def train(folder: Path, wrap: str, die_at_call: int | None = None) -> list[Tensor]:
    """Train to the end from the checkpoint in the folder, if there is one; return the weights."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(5, 7), nn.Dropout(0.2), nn.Tanh(), nn.Linear(7, 3))
    optimizer = WRAPS[wrap](torch.optim.AdamW(model.parameters(), lr=0.01))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)
    first = resume(folder / "last.pt", model, optimizer, scheduler)
    calls = 0
    for step in range(first, STEPS):
        data = torch.randn(6, 5), torch.randn(6, 3)

        def closure(data: tuple[Tensor, Tensor] = data) -> Tensor:
            nonlocal calls
            optimizer.zero_grad()
            loss = loss_of(model, data)
            if calls == die_at_call:
                os.kill(os.getpid(), signal.SIGKILL)
            calls += 1
            loss.backward()
            return loss

        optimizer.step(closure)
        scheduler.step()
        if step % 2:
            save(folder / "last.pt", step + 1, model, optimizer, scheduler)
    return [param.detach() for param in model.parameters()]


def save(path: Path, step: int, model: Any, optimizer: Any, scheduler: Any) -> None:
    unfinished = path.with_suffix(".unfinished")
    states = [part.state_dict() for part in (model, optimizer, scheduler)]
    torch.save({"step": step, "states": states, "random": torch.get_rng_state()}, unfinished)
    unfinished.replace(path)  # at once: a kill leaves the old file or the new one


def resume(path: Path, *parts: Any) -> int:
    if not path.exists():
        return 0
    checkpoint = torch.load(path, weights_only=True)
    for part, state in zip(parts, checkpoint["states"], strict=True):
        part.load_state_dict(state)
    torch.set_rng_state(checkpoint["random"])
    return int(checkpoint["step"])


if __name__ == "__main__":
    import sys

    train(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
