"""Models with known losses, and their losses by functions instead of by moving weights."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

IMAGES = torch.randn(6, 3, 8, 8, dtype=torch.float64, generator=Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])
TOKENS = torch.tensor([[1, 5, 2, 9], [4, 4, 10, 0]])


class Quadratic(nn.Module):
    """``L(w) = (w - c)' H (w - c) / 2 + offset`` with ``w`` in a matrix and a column."""

    def __init__(self, curvature: Tensor, minimum: Tensor, offset: float = 0.0) -> None:
        super().__init__()
        half = curvature.shape[0] // 2
        self.matrix = nn.Parameter(torch.randn(2, half // 2, dtype=curvature.dtype))
        self.column = nn.Parameter(torch.randn(half, 1, dtype=curvature.dtype))
        self.curvature, self.minimum, self.offset = curvature, minimum, offset

    def flat(self) -> Tensor:
        return torch.cat([self.matrix.flatten(), self.column.flatten()])

    def forward(self) -> Tensor:
        way = self.flat() - self.minimum
        return way @ self.curvature @ way / 2 + self.offset


def quadratic(offset: float = 0.0) -> Quadratic:
    root = torch.randn(8, 8, dtype=torch.float64)
    return Quadratic(root @ root.T, torch.randn(8, dtype=torch.float64), offset)


class Residual(nn.Module):
    """A small ResNet: convolutions without bias, BatchNorm, a skip, a dropout, a linear head."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8, 5)
        nn.init.zeros_(self.head.bias)
        self.double()

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.stem(images)
        features = torch.relu(features + self.block(features)).mean((2, 3))
        logits: Tensor = self.head(self.dropout(features))
        return logits


class TiedTransformer(nn.Module):
    """A language model that reads out with its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.double()

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layer(self.embedding(tokens)))
        return logits


def own_loss(model: Callable[..., Any]) -> Tensor:
    """The loss of a model that is one."""
    loss: Tensor = model()
    return loss


def image_loss(model: Callable[..., Any]) -> Tensor:
    return nn.functional.cross_entropy(model(IMAGES), LABELS)


def token_loss(model: Callable[..., Any]) -> Tensor:
    return nn.functional.cross_entropy(model(TOKENS).flatten(0, 1), TOKENS.flatten())


@torch.no_grad()
def loss_moved(
    model: nn.Module,
    loss_fn: Callable[[Callable[..., Any]], Tensor],
    direction: Mapping[str, Tensor],
    alpha: float = 1.0,
) -> Tensor:
    """The loss at ``w + alpha * d``, one tensor at a time; nothing is overwritten."""
    tensors = {
        name: param + alpha * direction[name] if name in direction else param
        for name, param in model.named_parameters()
    }
    tensors |= {name: buffer.clone() for name, buffer in model.named_buffers()}
    return loss_fn(lambda *inputs: functional_call(model, tensors, inputs))


def noise(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Unscaled noise for every parameter, one-dimensional ones included."""
    generator = Generator().manual_seed(seed)
    return {
        name: 0.1 * torch.randn(param.shape, dtype=param.dtype, generator=generator)
        for name, param in model.named_parameters()
    }
