"""Random directions in the space of the weights, on the scale of the weights."""

from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Generator, Tensor, nn

from torch_awp.arguments import Select, is_selected
from torch_awp.functional import step_scales, wide

Direction = Mapping[str, Tensor]


@torch.inference_mode(False)
@torch.no_grad()
def filter_normalized_direction(
    model: nn.Module,
    generator: Generator | None = None,
    *,
    select: Select | None = None,
    orthogonal_to: Direction | None = None,
) -> dict[str, Tensor]:
    r"""Draw a Gaussian direction of which every filter is as long as the weight's.

    For filter :math:`j` of tensor :math:`l` and :math:`d \sim N(0, I)` (Li et al. 2018,
    "Visualizing the Loss Landscape of Neural Nets"; Eq. 1 of Yue et al. 2024):

    .. math:: d_{l,j} \leftarrow d_{l,j} / \lVert d_{l,j} \rVert \cdot \lVert w_{l,j} \rVert

    A filter is what the first index of a tensor picks: an output channel of a convolution, an
    output unit of a linear layer, a token of an embedding, but an input channel of a transposed
    convolution. A selected tensor with fewer than two dimensions is one filter.

    Args:
        model: any module; frozen parameters are weights too.
        generator: source of the noise, on any device; ``None`` draws from torch's global ones.
        select: which tensors get a direction: ``None`` for those with more than one dimension, or
            a callable ``(name, param) -> bool``. The others get zeros.
        orthogonal_to: a direction that the new one is made orthogonal to before its filters are
            normalised, which brings back a little of the other: :func:`cosine` says how much.

    Returns:
        For each name in ``model.named_parameters()`` (tied weights have one) a tensor with the
        parameter's shape and device, in float32 or wider. Filters of zeros get zeros. Parameters
        of integers are left out.

    Raises:
        ValueError: ``orthogonal_to`` does not fit the model.

    >>> model = nn.Linear(3, 2)
    >>> direction = filter_normalized_direction(model, torch.Generator().manual_seed(0))
    >>> torch.allclose(direction["weight"].norm(dim=1), model.weight.norm(dim=1))
    True
    >>> direction["bias"]
    tensor([0., 0.])
    """
    weights = {name: p for name, p in model.named_parameters() if is_continuous(p)}
    selected = [name for name, w in weights.items() if is_selected(select, name, w)]
    direction = {
        name: _normalized(normal_like(w, generator), w)
        if name in selected
        else torch.zeros_like(w, dtype=wide(w.dtype))
        for name, w in weights.items()
    }
    if orthogonal_to is not None:
        other = checked_direction("orthogonal_to", orthogonal_to, model)
        shared = [name for name in selected if name in other]
        # Between filters of the right lengths: normalising them once more changes very little.
        share = (_dot(direction, other, shared) / _dot(other, other, shared)).nan_to_num()
        for name in shared:
            parallel = share.to(other[name].device) * other[name]
            direction[name] = _normalized(direction[name] - parallel, weights[name])
    return direction


@torch.no_grad()
def cosine(first: Direction, second: Direction) -> float:
    """Return the cosine of the angle between two directions; NaN if one of them is zero.

    >>> cosine({"weight": torch.tensor([1.0, 0.0])}, {"weight": torch.tensor([3.0, 4.0])})
    0.6
    """
    product = _dot(first, second, first.keys() & second.keys())
    return float(product / (_dot(first, first, first) * _dot(second, second, second)).sqrt())


def checked_direction(argument: str, direction: Direction, model: nn.Module) -> dict[str, Tensor]:
    """The direction on the parameters' devices, in float32 or wider, if it fits them."""
    params = dict(model.named_parameters())
    for name, vector in direction.items():
        if name not in params:
            raise ValueError(f"{argument} has {name!r}, which model.named_parameters() has not")
        if vector.shape != params[name].shape:
            shapes = f"{tuple(params[name].shape)}, got {tuple(vector.shape)}"
            raise ValueError(f"{argument}[{name!r}] must have the parameter's shape {shapes}")
    return {
        name: vector.detach().to(params[name].device, wide(vector.dtype))
        for name, vector in direction.items()
    }


def is_continuous(tensor: Tensor) -> bool:
    """Whether small steps are possible: real or complex numbers, not integers."""
    return tensor.is_floating_point() or tensor.is_complex()


def normal_like(weight: Tensor, generator: Generator | None) -> Tensor:
    """Gaussian noise of a weight's shape and device, in float32 or wider."""
    device = weight.device if generator is None else generator.device
    noise = torch.randn(weight.shape, dtype=wide(weight.dtype), device=device, generator=generator)
    return noise.to(weight.device)


def _normalized(vector: Tensor, weight: Tensor) -> Tensor:
    """The vector with every filter rescaled to the length of the weight's."""
    scales = step_scales(_filter_norms(weight), _filter_norms(vector), 1.0)
    scales = cast("Tensor", scales).to(vector.dtype)
    return (_filters(vector) * scales.unsqueeze(1)).reshape(vector.shape)


def _filter_norms(tensor: Tensor) -> Tensor:
    filters = _filters(tensor)
    filters = filters.to(torch.promote_types(filters.dtype, _accumulator(tensor.device)))
    norms: Tensor = torch.linalg.vector_norm(filters, dim=1)
    return norms


def _filters(tensor: Tensor) -> Tensor:
    """One filter per row; below two dimensions there is only one."""
    return tensor.flatten(1) if tensor.ndim > 1 else tensor.reshape(1, -1)


def _dot(first: Direction, second: Direction, names: Iterable[str]) -> Tensor:
    """The real inner product over the given tensors, on the device of one of them."""
    total = torch.zeros((), dtype=torch.float32, device="cpu")
    for name in names:
        product = (first[name].conj() * second[name]).real
        product = product.sum(dtype=_accumulator(product.device))
        total = product + total.to(product.device)
    return total


def _accumulator(device: torch.device) -> torch.dtype:
    return torch.float64 if device.type == "cpu" else torch.float32
