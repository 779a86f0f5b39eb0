"""The mathematics of weight perturbation, as functions on lists of tensors.

A "layer" is one parameter tensor ``w`` and ``W = ||w||`` its Frobenius norm before any
perturbation. With ``d`` the gradient (adversarial) or Gaussian noise (random), one move is

    v <- project(v + step_size * W * d / ||d||)

onto ``||v|| <= gamma * W`` (Eq. 9 to 12 of Yue et al. 2024) or onto ``|v_i| <= gamma * |w_i|``
(their released code; this box lies inside the ball, so it alone is the projection onto both).

Every function takes strided, real tensors of one device and one dtype with at least one dimension
and changes only those whose name ends in an underscore. Norms and what is made of them are tensors
on an accelerator, where the number of dispatched operations does not depend on the number of
tensors and nothing waits for a value, and Python's numbers on the host, where memory is what is
slow: it works on long tensors piece by piece, each while it is in cache.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor, nn

Item = TypeVar("Item")
Numbers = list[float] | Tensor
"""One number for each of ``L`` tensors: a list for those on the host, else of shape ``[L]``."""

# Elements that the host works on at a time: few enough for a core's cache to hold them with some
# temporaries (512 KiB in float32 each), enough to be worth a call.
PIECE = 2**17
# Elements whose squares the host sums in float32: the sum is good to 1e-5.
_SUMMED = 2**18
# Outside this range the squares summed in float32 lose digits, underflow or overflow.
_TRUSTED_FLOAT32_NORMS = (1e-12, 1e18)


def is_plain(tensor: Tensor) -> bool:
    """Whether this is one of torch's own tensors, of no class that gives operations a meaning."""
    return type(tensor) in (Tensor, nn.Parameter)


def on_host(tensor: Tensor) -> bool:
    """Whether the values lie in the host's memory; reading an accelerator's would wait."""
    return tensor.is_cpu and is_plain(tensor)


@cache
def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the type to compute in: float32 or wider."""
    return torch.promote_types(dtype, torch.float32)


def clone_tensors(tensors: list[Tensor]) -> list[Tensor]:
    """Return independent copies, equal bit for bit.

    >>> clone_tensors([torch.tensor([1.0, -0.0])])
    [tensor([1., -0.])]
    """
    if hasattr(torch, "_foreach_clone"):  # torch >= 2.9 has one pass for this
        return list(torch._foreach_clone(tensors))
    return list(torch.ops.aten._foreach_copy.default(tensors, tensors))


def frobenius_norms(tensors: list[Tensor]) -> Numbers:
    """Return ``||t||`` of every tensor, computed in float32 or wider.

    Args:
        tensors: ``L`` floating-point tensors of one dtype.

    Returns:
        ``L`` numbers; on an accelerator in float32, or float64 for float64 tensors. Infinite or NaN
        where a tensor holds such a value or its norm overflows.

    >>> frobenius_norms([torch.full((4,), 6e4, dtype=torch.float16)])
    [120000.0]
    >>> [round(norm / 1e30, 6) for norm in frobenius_norms([torch.tensor([3e30, 4e30])])]
    [5.0]
    """
    dtype = wide(tensors[0].dtype)
    if not on_host(tensors[0]):
        return torch.stack(list(torch._foreach_norm(tensors, 2, dtype=dtype)))
    short = [tensor for tensor in tensors if tensor.numel() <= PIECE]
    of_short = (
        torch.stack(list(torch._foreach_norm(short, 2, dtype=dtype))).tolist() if short else []
    )
    values = iter(of_short)
    norms = [next(values) if t.numel() <= PIECE else _norm_by_pieces(t) for t in tensors]
    low, high = _TRUSTED_FLOAT32_NORMS
    if dtype == torch.float32:
        for i, norm in enumerate(norms):
            if not low < norm < high:
                norms[i] = torch.linalg.vector_norm(tensors[i], dtype=torch.float64).item()
    return norms


def _norm_by_pieces(tensor: Tensor) -> float:
    flat = _flat(tensor)
    flat = tensor.reshape(-1) if flat is None else flat
    pieces = torch.split(flat, _SUMMED)
    if tensor.dtype != wide(tensor.dtype):
        pieces = tuple(piece.to(wide(tensor.dtype)) for piece in pieces)
    return math.sqrt(sum(torch.stack([torch.dot(piece, piece) for piece in pieces]).tolist()))


def step_scales(
    weight_norms: Numbers, direction_norms: Numbers, step_size: float, epsilon: float = 0.0
) -> Numbers:
    """Return ``step_size * W / ||d||`` per layer, and 0 for a layer that must not move.

    A layer stays where it is if its weight or its direction is zero or not finite.

    Args:
        weight_norms: ``W``, ``L`` numbers.
        direction_norms: ``||d||``, ``L`` numbers.
        step_size: length of the step relative to ``W``; negative to go against the direction.
        epsilon: added to both norms. With 0, multiplying a direction by a constant changes nothing.

    >>> step_scales([2.0, 2.0, 0.0], [4.0, 0.0, 4.0], 0.5)
    [0.25, 0.0, 0.0]
    >>> step_scales(torch.tensor([2.0, 2.0, 0.0]), torch.tensor([4.0, 0.0, 4.0]), 0.5)
    tensor([0.2500, 0.0000, 0.0000])
    """
    if isinstance(weight_norms, list) or isinstance(direction_norms, list):
        return [
            step_size * (weight_norm + epsilon) / (direction_norm + epsilon)
            if 0 < weight_norm < math.inf and 0 < direction_norm < math.inf
            else 0.0
            for weight_norm, direction_norm in zip(weight_norms, direction_norms, strict=True)
        ]
    moves = (weight_norms > 0) & (direction_norms > 0)
    scales = step_size * (weight_norms + epsilon) / (direction_norms + epsilon)
    return torch.where(moves & scales.isfinite(), scales, 0)


def add_scaled_(weights: list[Tensor], directions: list[Tensor], scales: Numbers) -> None:
    """``w += s * d``, computed in float32 or wider and rounded once.

    Where ``s`` is 0 the weight keeps its value whatever ``d`` holds, infinities and NaN included:
    masking by a product would turn them into NaN.

    Args:
        weights: ``L`` tensors, changed in place.
        directions: ``L`` tensors of the weights' shapes.
        scales: ``L`` numbers.
    """
    dtype = wide(weights[0].dtype)
    if isinstance(scales, list):
        largest = torch.finfo(dtype).max
        for weight, direction, scale in zip(weights, directions, scales, strict=True):
            if 0 < abs(scale) <= largest:
                _add_(weight, direction, scale)
        return
    # A scale of shape [1] takes part in type promotion, so that bfloat16 is computed in float32.
    scales = scales.to(dtype).nan_to_num(posinf=0.0, neginf=0.0)
    # x ** 0 is 1 even for NaN and infinity, so a layer that must not move adds 0 * 1.
    exponents = torch.split((scales != 0).to(dtype), 1)
    masked = list(torch._foreach_pow(directions, exponents))
    torch._foreach_addcmul_(weights, masked, list(torch.split(scales, 1)))


def _add_(weight: Tensor, direction: Tensor, scale: float) -> None:
    if weight.dtype == wide(weight.dtype):
        weight.add_(direction, alpha=scale)
    else:  # half precision would round the scale too
        scales = torch.tensor([scale], dtype=wide(weight.dtype), device="cpu")
        weight.addcmul_(direction, scales)


def project_layer_(
    weights: list[Tensor],
    centers: list[Tensor],
    gamma: float,
    center_norms: Numbers,
    norms_of: Callable[[list[Tensor]], Numbers] | None = None,
) -> None:
    """Project each weight onto the ball ``||w - c|| <= gamma * ||c||`` around its center.

    Args:
        weights: ``L`` tensors, changed in place; those inside their ball stay.
        centers: ``L`` tensors of the weights' shapes.
        gamma: radius relative to the centers' norms.
        center_norms: ``L`` numbers.
        norms_of: takes those of such tensors where the whole tensors are more than these parts.

    >>> weight = torch.tensor([4.0, 3.0])
    >>> project_layer_([weight], [torch.tensor([1.0, -1.0])], 0.5, [5.0])
    >>> weight
    tensor([2.5000, 1.0000])
    """
    if norms_of is None and isinstance(center_norms, list) and len(center_norms) > 1:
        for weight, center, norm in zip(weights, centers, center_norms, strict=True):
            project_layer_([weight], [center], gamma, [norm])  # with memory for one difference
        return
    away = list(torch._foreach_sub(weights, centers))
    distances = (norms_of or frobenius_norms)(away)
    if isinstance(distances, list) or isinstance(center_norms, list):
        for weight, way, norm, distance in zip(weights, away, center_norms, distances, strict=True):
            if distance > gamma * norm:
                _add_(weight, way, float(gamma * norm) / distance - 1)
        return
    pull = (1 - gamma * center_norms / distances).nan_to_num(nan=0.0, neginf=0.0).clamp(min=0)
    pull = -pull.to(wide(weights[0].dtype))
    torch._foreach_addcmul_(weights, away, list(torch.split(pull, 1)))


def project_element_(weights: list[Tensor], centers: list[Tensor], gamma: float) -> None:
    """Project each element onto the interval ``|w_i - c_i| <= gamma * |c_i|``.

    >>> weight = torch.tensor([4.0, -1.05])
    >>> project_element_([weight], [torch.tensor([1.0, -1.0])], gamma=0.5)
    >>> weight
    tensor([ 1.5000, -1.0500])
    """
    if on_host(weights[0]):
        for weight, center in _pieces(weights, centers):
            center = center.to(wide(center.dtype))
            size = center.abs()
            low = torch.sub(center, size, alpha=gamma)
            torch.clamp(weight, low, torch.add(center, size, alpha=gamma, out=size), out=weight)
        return
    dtype = wide(weights[0].dtype)
    moved, homes = ([tensor.to(dtype) for tensor in tensors] for tensors in (weights, centers))
    sizes = torch._foreach_abs(homes)
    torch._foreach_maximum_(moved, torch._foreach_sub(homes, sizes, alpha=gamma))
    torch._foreach_minimum_(moved, torch._foreach_add(homes, sizes, alpha=gamma))
    if dtype != weights[0].dtype:
        torch._foreach_copy_(weights, moved)


def _pieces(weights: list[Tensor], centers: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs with the elements of a weight and its center, cut into what a cache holds."""
    for weight, center in zip(weights, centers, strict=True):
        flats = [flat for flat in (_flat(weight), _flat(center)) if flat is not None]
        if weight.numel() <= PIECE or weight.stride() != center.stride() or len(flats) < 2:
            yield weight, center
        else:
            yield from zip(*(torch.split(flat, PIECE) for flat in flats), strict=True)


def _flat(tensor: Tensor) -> Tensor | None:
    """A view of the elements in the order of memory, where there is one without gaps."""
    if tensor.is_contiguous():
        return tensor.view(-1)
    by_stride = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
    ordered = tensor.permute(by_stride)
    return ordered.view(-1) if ordered.is_contiguous() else None


def alike(items: Iterable[Item], tensor_of: Callable[[Item], Tensor]) -> list[list[Item]]:
    """Return the items in lists whose tensors one call can take: of one dtype and device."""
    lists: dict[object, list[Item]] = {}
    for item in items:
        tensor = tensor_of(item)
        lists.setdefault((tensor.dtype, tensor.device), []).append(item)
    return list(lists.values())
