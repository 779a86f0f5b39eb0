"""Models whose losses are known, or are computed again one tensor at a time."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Quadratic(nn.Module):
    """``L(w) = (w - c)' H (w - c) / 2 + offset`` of two tensors laid side by side."""

    def __init__(self, curvature: Tensor, minimum: Tensor, offset: float = 0.0) -> None:
        super().__init__()
        half = curvature.shape[0] // 2
        self.first = nn.Parameter(torch.randn(2, half // 2, dtype=curvature.dtype))
        self.second = nn.Parameter(torch.randn(half, 1, dtype=curvature.dtype))
        self.curvature, self.minimum, self.offset = curvature, minimum, offset

    def weights(self) -> Tensor:
        return torch.cat([self.first.flatten(), self.second.flatten()])

    def forward(self) -> Tensor:
        way = self.weights() - self.minimum
        return way @ self.curvature @ way / 2 + self.offset


class Linear(nn.Module):
    """``L(w) = sum of g * w``: the loss whose rise in any ball is known."""

    def __init__(self, shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(s, dtype=dtype) for s in shapes])
        self.slopes = [torch.randn(s, dtype=dtype) for s in shapes]

    def forward(self) -> Tensor:
        return sum((w * g).sum() for w, g in zip(self.weights, self.slopes, strict=True))


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

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        features = torch.relu(features + self.block(features)).mean((2, 3))
        return self.head(self.dropout(features))


class TiedTransformer(nn.Module):
    """A language model that reads out with its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(tokens)))


IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])
TOKENS = torch.tensor([[1, 5, 2, 9], [4, 4, 10, 0]])


def image_loss(model: nn.Module) -> Tensor:
    images = IMAGES.to(next(model.parameters()).dtype)
    return nn.functional.cross_entropy(model(images), LABELS)


def token_loss(model: nn.Module) -> Tensor:
    return nn.functional.cross_entropy(model(TOKENS).flatten(0, 1), TOKENS.flatten())


def loss_moved(model: nn.Module, loss_fn, shift: Mapping[str, Tensor]) -> Tensor:
    """The loss with shifted weights, by functions instead of by moving: nothing is overwritten."""
    tensors = {name: p.detach() + shift.get(name, 0) for name, p in model.named_parameters()}
    tensors |= {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        return loss_fn(lambda *inputs: functional_call(model, tensors, inputs))
