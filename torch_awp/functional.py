"""The mathematics of weight perturbation, on lists of tensors of one device and dtype.

A "layer" is one parameter tensor `w`, and `W = ||w||` its Frobenius norm before any perturbation.
With `d` the gradient (adversarial) or Gaussian noise (random), one move is

    v <- project(v + step_size * W * d / ||d||)

onto `||v|| <= gamma * W` (Eq. 9 to 12 of Yue et al. 2024) or onto `|v_i| <= gamma * |w_i|` (their
released code; the box lies inside the ball, so it alone is the projection onto both).

All tensors are strided and real and have at least one dimension. Only functions whose name ends in
an underscore change their arguments. Nothing here waits for a value of an accelerator. There the
number of kernels counts: many tensors are copied into one buffer, where one kernel serves them all.
On the host memory traffic counts: long tensors are handled in pieces that fit into a core's cache.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor

# Elements of a piece: on the host 512 KiB in float32, elsewhere 32 MiB. A portion has up to twice.
_HOST_PIECE, _DEVICE_PIECE = 2**17, 2**23
# Elements on the host up to which one call for many tensors takes less time than one for each.
_SHORT = 2**14
# A tensor begins a row of its own in a buffer, so that a row has one scale.
_ROW = 1024

Tensors = list[Tensor]


def on_host(tensor: Tensor) -> bool:
    """Whether the values lie in the host's memory; reading an accelerator's would wait."""
    return tensor.is_cpu


@cache
def opmath_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute in: float32 or wider."""
    return torch.promote_types(dtype, torch.float32)


def norms(tensors: Tensors) -> Tensor:
    """Return the Frobenius norms of `L` tensors, shape `[L]`.

    They are float64 on the host, elsewhere float32, or float64 for float64 tensors. A norm is
    infinite or NaN where the tensor holds such a value or, not on the host, where it overflows.

    >>> norms([torch.full((4,), 6e4, dtype=torch.float16)])
    tensor([120000.], dtype=torch.float64)
    """
    dtype = opmath_dtype(tensors[0].dtype)
    if not on_host(tensors[0]):
        return torch.stack(list(torch._foreach_norm(tensors, 2, dtype=dtype)))
    short = [tensor for tensor in tensors if tensor.numel() <= _SHORT]
    of_short = iter(torch._foreach_norm(short, 2, dtype=dtype) if short else ())
    each = [_norm_of_long(t) if t.numel() > _SHORT else next(of_short) for t in tensors]
    found = torch.stack(each).double()
    for i, norm in enumerate(found.tolist()):
        if not 1e-12 < norm < 1e18:  # outside, squares in float32 lose digits
            found[i] = torch.linalg.vector_norm(tensors[i], dtype=torch.float64)
    return found


def distances(weights: Tensors, centers: Tensors) -> Tensor:
    """Return `||w - c||` of `L` pairs, shape `[L]`, as :func:`norms` does.

    >>> distances([torch.tensor([4.0, 3.0])], [torch.tensor([1.0, -1.0])])
    tensor([5.], dtype=torch.float64)
    """
    owners, parts = list[int](), Tensors()
    for of_portion, moved, starts in _in_pieces(weights, centers):
        owners += of_portion
        parts.append(norms(_differences(moved, starts)))
    found = torch.cat(parts)
    if len(owners) > len(weights):
        of_each = torch.split(found, list(Counter(owners).values()))
        found = torch.stack([torch.linalg.vector_norm(of_one) for of_one in of_each])
    return found


def step_scales(
    weight_norms: Tensor, direction_norms: Tensor, step_size: float, epsilon: float = 0.0
) -> Tensor:
    """Return `step_size * W / ||d||`, and 0 where `W` or `||d||` is zero or not finite.

    Args:
        weight_norms: `W`, shape `[L]`.
        direction_norms: `||d||`, shape `[L]`.
        step_size: length of the step relative to `W`; negative to go against the direction.
        epsilon: added to both norms. With 0, multiplying a direction by a constant changes nothing.

    >>> step_scales(torch.tensor([2.0, 2.0, 0.0]), torch.tensor([4.0, 0.0, 4.0]), 0.5)
    tensor([0.2500, 0.0000, 0.0000])
    """
    if epsilon == 0:  # a norm of 0 or infinity leaves 0 here, or what is not finite
        return _finite(weight_norms * step_size / direction_norms)
    scales = _finite(step_size * (weight_norms + epsilon) / (direction_norms + epsilon))
    return scales * ((weight_norms > 0) & (direction_norms > 0))


def add_scaled_(weights: Tensors, directions: Tensors, scales: Tensor) -> None:
    """Compute `w += s * d` in float32 or wider and round once.

    Where `s` is 0 the weight keeps its bits whatever `d` holds, infinities and NaN included.

    Args:
        weights: `L` tensors.
        directions: `L` tensors of the weights' shapes, of one dtype.
        scales: shape `[L]`.

    >>> weight = torch.tensor([1.0, 2.0])
    >>> add_scaled_([weight], [torch.tensor([1.0, -1.0])], torch.tensor([0.5]))
    >>> weight
    tensor([1.5000, 1.5000])
    """
    dtype = opmath_dtype(weights[0].dtype)
    if on_host(scales):  # one pass through memory, whatever the length
        for weight, direction, scale in zip(weights, directions, scales.tolist(), strict=True):
            if 0 < abs(scale) <= torch.finfo(dtype).max:
                if direction.dtype != dtype:  # the alpha of half precision would be rounded
                    direction = direction.to(dtype)
                weight.add_(direction, alpha=scale)
        return
    each = torch.split(_finite(scales.to(dtype)), 1)
    for owners, moved, along in _in_pieces(weights, directions):
        copies, buffer = _buffer(along, dtype, like=moved)
        of_rows = [each[i].expand(n) for i, n in zip(owners, _rows(moved), strict=True)]
        factors = torch.cat(of_rows).unsqueeze(1)
        # A product with 0 would keep NaN, and adding 0.0 would turn -0.0 into 0.0.
        buffer.masked_fill_(factors == 0, -0.0).mul_(factors)
        if dtype == weights[0].dtype:
            for some_weights, some_copies in alike(moved, copies):
                torch._foreach_add_(some_weights, some_copies)
        else:
            sums, wide = _buffer(moved, dtype)
            wide.add_(buffer)
            copy_(moved, sums)


def project_layer_(weights: Tensors, centers: Tensors, radii: Tensor, distances: Tensor) -> None:
    """Project each weight onto the ball `||w - c|| <= radius`; those inside do not change.

    Args:
        weights: `L` tensors.
        centers: `L` tensors of the weights' shapes and dtype.
        radii: shape `[L]`.
        distances: `||w - c||` of the whole tensors, shape `[L]`.

    >>> weight = torch.tensor([4.0, 3.0])
    >>> radius, distance = torch.tensor([2.5]), torch.tensor([5.0])
    >>> project_layer_([weight], [torch.tensor([1.0, -1.0])], radius, distance)
    >>> weight
    tensor([2.5000, 1.0000])
    """
    pull = (radii / distances - 1).clamp(max=0)
    for owners, moved, starts in _in_pieces(weights, centers):
        # An accelerator would wait for a list of indices.
        some = pull[owners] if on_host(pull) else torch.cat([pull[i : i + 1] for i in owners])
        add_scaled_(moved, _differences(moved, starts), some)


def project_element_(weights: Tensors, centers: Tensors, gamma: float) -> None:
    """Project each element onto the interval `|w_i - c_i| <= gamma * |c_i|`.

    >>> weight = torch.tensor([4.0, -1.05])
    >>> project_element_([weight], [torch.tensor([1.0, -1.0])], gamma=0.5)
    >>> weight
    tensor([ 1.5000, -1.0500])
    """
    dtype = opmath_dtype(weights[0].dtype)
    for _, moved, starts in _in_pieces(weights, centers):
        if on_host(weights[0]):
            for weight, center in zip(moved, starts, strict=True):
                _clamp_(weight, center.to(dtype), gamma)
        else:
            copies, buffer = _buffer(moved, dtype)
            _clamp_(buffer, _buffer(starts, dtype)[1], gamma)
            copy_(moved, copies)


def copy_(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy each source to its target."""
    for some_targets, some_sources in alike(targets, sources):
        torch._foreach_copy_(some_targets, some_sources)


def alike(first: Sequence[Tensor], second: Sequence[Tensor]) -> Iterator[tuple[Tensors, Tensors]]:
    """Group corresponding tensors by device, dtypes and whether their strides are equal.

    One foreach operation takes a group; one pair with other strides would slow down all of it.
    """
    groups: dict[object, tuple[Tensors, Tensors]] = {}
    for one, other in zip(first, second, strict=True):
        key = (one.device, one.dtype, other.dtype, one.stride() == other.stride())
        if key not in groups:
            groups[key] = [], []
        groups[key][0].append(one)
        groups[key][1].append(other)
    yield from groups.values()


def _clamp_(weight: Tensor, center: Tensor, gamma: float) -> None:
    size = center.abs()
    low = torch.sub(center, size, alpha=gamma)
    torch.clamp(weight, low, torch.add(center, size, alpha=gamma, out=size), out=weight)


def _differences(weights: Tensors, centers: Tensors) -> Tensors:
    dtype = opmath_dtype(weights[0].dtype)
    if on_host(weights[0]):
        return [w.to(dtype) - c.to(dtype) for w, c in zip(weights, centers, strict=True)]
    copies, buffer = _buffer(weights, dtype)
    buffer.sub_(_buffer(centers, dtype)[1])
    return copies


def _buffer(
    tensors: Tensors, dtype: torch.dtype, like: Tensors | None = None
) -> tuple[Tensors, Tensor]:
    """Copy tensors into one buffer; return their copies, which are views of it, and the buffer.

    The buffer has shape `[rows, _ROW]`, and a copy has the strides of its tensor in `like`.
    """
    rows = _rows(tensors)
    buffer = torch.empty(sum(rows), _ROW, dtype=dtype, device=tensors[0].device)
    copies, offset = [], 0
    for model, count in zip(like or tensors, rows, strict=True):
        # A slice of columns, say, would overlap its neighbour: `empty_like` leaves no gaps.
        stride = (model if model.is_contiguous() else torch.empty_like(model)).stride()
        copies.append(buffer.as_strided(model.shape, stride, offset))
        offset += count * _ROW
    copy_(copies, tensors)
    return copies, buffer


def _rows(tensors: Tensors) -> list[int]:
    return [-(-tensor.numel() // _ROW) for tensor in tensors]


def _cut(tensors: tuple[Tensor, ...], size: int) -> list[tuple[Tensor, ...]]:
    """Corresponding pieces of at most `size` elements, cut where the first tensor's lie apart."""
    first = tensors[0]
    if first.numel() <= size:
        return [tensors]
    dim = max(range(first.ndim), key=lambda d: (first.shape[d] > 1, first.stride(d)))
    length = max(1, size * first.shape[dim] // first.numel())
    parts = zip(*(torch.split(tensor, length, dim) for tensor in tensors), strict=True)
    return [piece for part in parts for piece in _cut(part, size)]


def _in_pieces(first: Tensors, second: Tensors) -> Iterator[tuple[list[int], Tensors, Tensors]]:
    """Corresponding tensors in portions of few elements, long ones cut.

    Yields:
        for each piece the index of the tensor it belongs to, and the pieces of each list.
    """
    size = _HOST_PIECE if on_host(first[0]) else _DEVICE_PIECE
    pairs = enumerate(zip(first, second, strict=True))
    pieces: list[Any] = [(owner, *both) for owner, pair in pairs for both in _cut(pair, size)]
    for portion in in_portions(pieces, [one.numel() for _, one, _ in pieces], size):
        owners, some, others = zip(*portion, strict=True)
        yield list(owners), list(some), list(others)


def in_portions(items: Sequence[Any], numels: Sequence[int], size: int) -> Iterator[list[Any]]:
    """Split a list wherever its tensors have reached another `size` elements."""
    ends = accumulate(numels)
    for _, portion in groupby(zip(ends, items, strict=True), key=lambda pair: pair[0] // size):
        yield [item for _, item in portion]


def _finite(numbers: Tensor) -> Tensor:
    return numbers.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _norm_of_long(tensor: Tensor) -> Tensor:
    """On the host, where `torch.dot` takes half of the time of torch's norm."""
    dtype = opmath_dtype(tensor.dtype)
    in_order = tensor.permute(sorted(range(tensor.ndim), key=tensor.stride, reverse=True))
    if not in_order.is_contiguous():  # a float32 sum of elements that lie apart loses digits
        norm: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.float64)
    else:
        pieces = [piece.to(dtype) for piece in torch.split(in_order.view(-1), _HOST_PIECE)]
        norm = torch.stack([torch.dot(piece, piece) for piece in pieces]).double().sum().sqrt()
    return norm.to(dtype)
