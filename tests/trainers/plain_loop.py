"""What every trainer must equal: the same training written as a plain loop."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from torch_awp import AdversarialWeightPerturbation, RandomWeightPerturbation

WRAPS = {
    "awp": lambda base: AdversarialWeightPerturbation(base, 0.1),
    "awp-interval": lambda base: AdversarialWeightPerturbation(base, 0.1, interval=2),
    "awp-update": lambda base: AdversarialWeightPerturbation(base, 0.1, ascent="update"),
    "rwp": lambda base: RandomWeightPerturbation(
        base, 0.1, generator=torch.Generator().manual_seed(5)
    ),
}
STEPS = 6
BATCH = 4


def network() -> nn.Sequential:
    generator_state = torch.get_rng_state()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    torch.set_rng_state(generator_state)
    return model


def dataset(pieces: int = 1) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    size = STEPS * BATCH * pieces
    return TensorDataset(
        torch.randn(size, 5, generator=generator), torch.randn(size, 3, generator=generator)
    )


def loader(pieces: int = 1) -> DataLoader:
    """``STEPS`` times ``pieces`` batches."""
    return DataLoader(dataset(pieces), batch_size=BATCH)


def build(wrap: str, model: nn.Module) -> tuple[Any, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = WRAPS[wrap](torch.optim.AdamW(model.parameters(), lr=0.05))
    return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)


def plain_run(wrap: str, *, pieces: int = 1, clip: float | None = None) -> list[Tensor]:
    """Train in the block form on big batches made of ``pieces``; return the weights."""
    model = network()
    optimizer, scheduler = build(wrap, model)
    for x, y in DataLoader(dataset(pieces), batch_size=BATCH * pieces):

        def backward(x: Tensor = x, y: Tensor = y) -> None:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()

        backward()
        with optimizer.perturb():
            backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        scheduler.step()
    return weights(model)


class Regressor(nn.Module):
    """Ends in its loss, as the models of `transformers` do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor | None]:
        logits = self.net(x)
        loss = None if labels is None else nn.functional.mse_loss(logits, labels)
        return {"loss": loss, "logits": logits}


def by_hand(
    wrap: str,
    *,
    pieces: int = 1,
    clip: float | None = None,
    dtype: torch.dtype | None = None,
    epochs: int = 1,
    scheduled: bool = True,
) -> list[Tensor]:
    """Every micro-batch climbs for itself; its gradient at `w + v` is added to those before."""
    model = network()
    optimizer, scheduler = build(wrap, model)

    def backward(x: Tensor, y: Tensor, scale: float = 1.0) -> None:
        model.zero_grad()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            loss = nn.functional.mse_loss(model(x), y)
        (loss / scale).backward()

    batches = list(loader(pieces)) * epochs
    for begin in range(0, len(batches), pieces):
        total = [torch.zeros_like(param) for param in model.parameters()]
        for x, y in batches[begin : begin + pieces]:
            backward(x, y)
            with optimizer.perturb():
                backward(x, y, pieces)
            for tensor, param in zip(total, model.parameters(), strict=True):
                tensor += param.grad
        for tensor, param in zip(total, model.parameters(), strict=True):
            param.grad = tensor
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if scheduled:
            scheduler.step()
    return weights(model)


def weights(model: nn.Module) -> list[Tensor]:
    return [param.detach().clone() for param in model.parameters()]


def assert_same_weights(measured: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    torch.testing.assert_close(list(measured), list(expected), rtol=1e-4, atol=1e-5)
