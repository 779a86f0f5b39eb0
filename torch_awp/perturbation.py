"""The mathematics of weight perturbation, as functions on lists of tensors.

A "layer" is one parameter tensor ``w`` and ``W = ||w||`` its Frobenius norm before any
perturbation. With ``d`` the gradient (adversarial) or Gaussian noise (random), one move is

    v <- project(v + step_size * W * d / ||d||)

onto ``||v|| <= gamma * W`` (Eq. 9 to 12 of Yue et al. 2024) or onto ``|v_i| <= gamma * |w_i|``
(their released code; this box lies inside the ball, so it alone is the projection onto both).

Every function takes strided, real tensors of one device and one dtype with at least one dimension
and changes only those whose name ends in an underscore. On an accelerator the number of dispatched
operations does not depend on the number of tensors, and nothing waits for a value. The host, where
memory is what is slow, works on long tensors piece by piece, each while it is in cache.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

# Elements that the host works on at a time: few enough for a core's cache to hold them with some
# temporaries (512 KiB in float32 each), enough to be worth a call. Tensors up to this length share
# calls, longer ones are worked on in pieces.
PIECE = 2**17
# Elements whose squares the host sums in float32: the sum is good to 1e-5.
_SUMMED = 2**18
# Outside this range the squares summed in float32 lose digits, underflow or overflow.
_TRUSTED_FLOAT32_NORMS = (1e-12, 1e18)


def on_host(tensor: Tensor) -> bool:
    """Whether the values lie in the host's memory; reading an accelerator's would wait."""
    return tensor.device.type == "cpu" and type(tensor) in (Tensor, nn.Parameter)


def clone_tensors(tensors: list[Tensor]) -> list[Tensor]:
    """Return independent copies, equal bit for bit.

    >>> clone_tensors([torch.tensor([1.0, -0.0])])
    [tensor([1., -0.])]
    """
    if hasattr(torch, "_foreach_clone"):  # torch >= 2.9 has one pass for this
        return list(torch._foreach_clone(tensors))
    return list(torch.ops.aten._foreach_copy.default(tensors, tensors))


def frobenius_norms(tensors: list[Tensor]) -> Tensor:
    """Return ``||t||`` of every tensor, computed in float32 or wider.

    Args:
        tensors: ``L`` floating-point tensors of one dtype.

    Returns:
        Tensor of shape ``[L]``: float64 on the CPU, elsewhere float32, or float64 for float64
        tensors. Infinite or NaN where a tensor holds such a value or its norm overflows.

    >>> frobenius_norms([torch.full((4,), 6e4, dtype=torch.float16)])
    tensor([120000.], dtype=torch.float64)
    >>> frobenius_norms([torch.tensor([3e30, 4e30])])
    tensor([5.0000e+30], dtype=torch.float64)
    """
    dtype = _wide(tensors[0].dtype)
    if not on_host(tensors[0]):
        return torch.stack(list(torch._foreach_norm(tensors, 2, dtype=dtype)))
    short = [tensor for tensor in tensors if tensor.numel() <= PIECE]
    of_short = torch.stack(list(torch._foreach_norm(short, 2, dtype=dtype))) if short else short
    values = iter(of_short.tolist() if isinstance(of_short, Tensor) else of_short)
    norms = [next(values) if t.numel() <= PIECE else _norm_by_pieces(t) for t in tensors]
    low, high = _TRUSTED_FLOAT32_NORMS
    if dtype == torch.float32:
        for i, norm in enumerate(norms):
            if not low < norm < high:
                norms[i] = torch.linalg.vector_norm(tensors[i], dtype=torch.float64).tolist()
    return torch.tensor(norms, dtype=torch.float64)


def _norm_by_pieces(tensor: Tensor) -> float:
    flat = _flat(tensor)
    flat = tensor.reshape(-1) if flat is None else flat
    pieces = torch.split(flat, _SUMMED)
    if tensor.dtype != _wide(tensor.dtype):
        pieces = tuple(piece.to(_wide(tensor.dtype)) for piece in pieces)
    return math.sqrt(sum(torch.stack([torch.dot(piece, piece) for piece in pieces]).tolist()))


def step_scales(
    weight_norms: Tensor, direction_norms: Tensor, step_size: float, epsilon: float = 0.0
) -> Tensor:
    """Return ``step_size * W / ||d||`` per layer, and 0 for a layer that must not move.

    A layer stays where it is if its weight or its direction is zero or not finite.

    Args:
        weight_norms: ``W``, shape ``[L]``.
        direction_norms: ``||d||``, shape ``[L]``.
        step_size: length of the step relative to ``W``.
        epsilon: added to both norms. With 0, multiplying a direction by a constant changes nothing.

    >>> step_scales(torch.tensor([2.0, 2.0, 0.0]), torch.tensor([4.0, 0.0, 4.0]), 0.1)
    tensor([0.0500, 0.0000, 0.0000])
    """
    if on_host(weight_norms) and on_host(direction_norms):
        return _step_scales_on_host(weight_norms, direction_norms, step_size, epsilon)
    moves = (weight_norms > 0) & (direction_norms > 0)
    scales = step_size * (weight_norms + epsilon) / (direction_norms + epsilon)
    return torch.where(moves & scales.isfinite(), scales, 0)


def _step_scales_on_host(
    weight_norms: Tensor, direction_norms: Tensor, step_size: float, epsilon: float
) -> Tensor:
    """The same number by number, which for a few is faster than an operation for each sign."""
    scales = []
    for weight_norm, direction_norm in zip(
        weight_norms.tolist(), direction_norms.tolist(), strict=True
    ):
        scale = 0.0
        if weight_norm > 0 and 0 < direction_norm < math.inf:
            scale = step_size * (weight_norm + epsilon) / (direction_norm + epsilon)
        scales.append(scale if math.isfinite(scale) else 0.0)
    return torch.tensor(scales, dtype=weight_norms.dtype)


def add_scaled_(weights: list[Tensor], directions: list[Tensor], scales: Tensor) -> None:
    """``w += s * d``, computed in float32 or wider and rounded once.

    Where ``s`` is 0 the weight keeps its value whatever ``d`` holds, infinities and NaN included:
    masking by a product would turn them into NaN.

    Args:
        weights: ``L`` tensors, changed in place.
        directions: ``L`` tensors of the weights' shapes.
        scales: shape ``[L]``.
    """
    # A scale of shape [1] takes part in type promotion, so that bfloat16 is computed in float32.
    scales = scales.to(_wide(weights[0].dtype)).nan_to_num(posinf=0.0)
    known = _values_on_host(scales)
    if known is not None and len(known) == 1 and scales.dtype == weights[0].dtype:
        if known[0] != 0:
            weights[0].add_(directions[0], alpha=known[0])  # the same in fewer calls
        return
    factors = list(torch.split(scales, 1))
    if known is None:
        # x ** 0 is 1 even for NaN and infinity, so a layer that must not move adds 0 * 1.
        exponents = torch.split((scales != 0).to(scales.dtype), 1)
        directions = list(torch._foreach_pow(directions, exponents))
    else:
        moving = [i for i, scale in enumerate(known) if scale != 0]
        weights, directions, factors = (
            [tensors[i] for i in moving] for tensors in (weights, directions, factors)
        )
    if weights:
        torch._foreach_addcmul_(weights, directions, factors)


def project_layer_(
    weights: list[Tensor],
    centers: list[Tensor],
    radii: Tensor,
    norms: Callable[[list[Tensor]], Tensor] = frobenius_norms,
) -> None:
    """Project each weight onto the ball ``||w - c|| <= r`` around its center.

    Args:
        weights: ``L`` tensors, changed in place; those inside their ball stay.
        centers: ``L`` tensors of the weights' shapes.
        radii: shape ``[L]``.
        norms: norms ``[L]`` of such tensors, where the whole tensors are more than these parts.

    >>> weight = torch.tensor([4.0, 3.0])
    >>> project_layer_([weight], [torch.tensor([1.0, -1.0])], torch.tensor([2.5]))
    >>> weight
    tensor([2.5000, 1.0000])
    """
    distances = norms(list(torch._foreach_sub(weights, centers)))
    pull = (1 - radii / distances).nan_to_num(nan=0.0, neginf=0.0).clamp(min=0)
    torch._foreach_lerp_(weights, centers, list(torch.split(pull.to(weights[0].dtype), 1)))


def project_element_(weights: list[Tensor], centers: list[Tensor], gamma: float) -> None:
    """Project each element onto the interval ``|w_i - c_i| <= gamma * |c_i|``.

    >>> weight = torch.tensor([4.0, -1.05])
    >>> project_element_([weight], [torch.tensor([1.0, -1.0])], gamma=0.5)
    >>> weight
    tensor([ 1.5000, -1.0500])
    """
    if on_host(weights[0]):
        for weight, center in _pieces(weights, centers):
            center = center.to(_wide(center.dtype))
            size = center.abs()
            low = torch.sub(center, size, alpha=gamma)
            torch.clamp(weight, low, torch.add(center, size, alpha=gamma, out=size), out=weight)
        return
    dtype = _wide(weights[0].dtype)
    wide, homes = ([tensor.to(dtype) for tensor in tensors] for tensors in (weights, centers))
    sizes = torch._foreach_abs(homes)
    torch._foreach_maximum_(wide, torch._foreach_sub(homes, sizes, alpha=gamma))
    torch._foreach_minimum_(wide, torch._foreach_add(homes, sizes, alpha=gamma))
    if dtype != weights[0].dtype:
        torch._foreach_copy_(weights, wide)


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


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _values_on_host(tensor: Tensor) -> list[float] | None:
    """The values, if reading them makes nothing wait."""
    if on_host(tensor):
        values: list[float] = tensor.tolist()
        return values
    return None
