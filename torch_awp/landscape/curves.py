"""The loss along one direction, over a plane and between two checkpoints."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn

from torch_awp.functional import wide
from torch_awp.landscape.direction import Direction, checked_direction, is_continuous
from torch_awp.landscape.preserved import LossFunction, evaluate, preserved

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Positions = Tensor | Sequence[float]
Point = tuple[float, ...]


def loss_curve(
    model: nn.Module,
    loss_fn: LossFunction,
    direction: Direction,
    alphas: Positions,
    *,
    process_group: "ProcessGroup | None" = None,
) -> Tensor:
    r"""Return :math:`L(w + \alpha d)` for every ``alpha`` (Eq. 1 of Yue et al. 2024).

    Every point is reached from the weights themselves and evaluated with the buffers, train/eval
    modes and random state found at the call, so that no point depends on another and dropout
    draws the same everywhere. At ``alpha = 0`` the weights are bit for bit the model's.

    Args:
        model: any module.
        loss_fn: ``model -> scalar`` loss, a tensor or a float; it chooses data and mode, and runs
            without autograd graph. What it does to buffers and modes is undone, so it may
            recalibrate BatchNorm first, with ``torch.optim.swa_utils.update_bn(batches, model)``.
        direction: a tensor for each name in ``model.named_parameters()`` that is to move.
        alphas: ``A`` positions, in units of ``direction``. The middle one of an odd number that
            spans ``-r ... r`` is taken as 0 where rounding (``torch.linspace``) missed it.
        process_group: ranks to split the points over, ``torch.distributed.group.WORLD`` for all.
            They hold the same weights and data; the first rank's direction counts.

    Returns:
        Shape ``[A]``, on the device and of the type of the losses (float64 for Python floats); with
        a process group the same on every rank.

    Raises:
        ValueError: ``direction`` does not fit the model, ``alphas`` are not finite numbers in one
            dimension, or the loss is not a scalar.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> nn.init.constant_(model.weight, 3.0).item()
    3.0
    >>> def loss_fn(model):
    ...     return model.weight.square().sum()
    >>> loss_curve(model, loss_fn, {"weight": torch.tensor([[2.0]])}, [-1.0, 0.0, 1.0])
    tensor([ 1.,  9., 25.])
    """
    points = [(alpha,) for alpha in _checked_positions("alphas", alphas)]
    direction = checked_direction("direction", direction, model)
    return _losses_along(model, loss_fn, [direction], points, process_group)


def loss_surface(
    model: nn.Module,
    loss_fn: LossFunction,
    directions: tuple[Direction, Direction],
    alphas: Positions,
    betas: Positions,
    *,
    process_group: "ProcessGroup | None" = None,
) -> Tensor:
    r"""Return :math:`L(w + \alpha d_1 + \beta d_2)` for every ``alpha`` and ``beta``.

    Everything else is as in :func:`loss_curve`.

    Args:
        model: any module.
        loss_fn: ``model -> scalar`` loss.
        directions: :math:`(d_1, d_2)`; draw the second ``orthogonal_to`` the first.
        alphas: ``A`` positions along the first direction.
        betas: ``B`` positions along the second.
        process_group: ranks to split the points over.

    Returns:
        Shape ``[A, B]``.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> first, second = {"weight": torch.eye(2)[:1]}, {"weight": torch.eye(2)[1:]}
    >>> def loss_fn(model):
    ...     return model.weight.norm()
    >>> _ = nn.init.zeros_(model.weight)
    >>> loss_surface(model, loss_fn, (first, second), [0.0, 3.0], [0.0, 4.0])
    tensor([[0., 4.],
            [3., 5.]])
    """
    rows, columns = _checked_positions("alphas", alphas), _checked_positions("betas", betas)
    checked = [
        checked_direction(f"directions[{i}]", direction, model)
        for i, direction in enumerate(directions)
    ]
    points = [(alpha, beta) for alpha in rows for beta in columns]
    losses = _losses_along(model, loss_fn, checked, points, process_group)
    return losses.reshape(len(rows), len(columns))


def interpolation_curve(
    model: nn.Module,
    loss_fn: LossFunction,
    start: Mapping[str, Any],
    end: Mapping[str, Any],
    alphas: Positions,
    *,
    process_group: "ProcessGroup | None" = None,
) -> Tensor:
    r"""Return the loss at :math:`(1 - \alpha) \cdot start + \alpha \cdot end`.

    Parameters and buffers are interpolated, both ends exact; tensors of integers are those of the
    nearer end. Running statistics do not interpolate well: recalibrate BatchNorm in ``loss_fn``.
    Everything else is as in :func:`loss_curve`.

    Args:
        model: any module.
        loss_fn: ``model -> scalar`` loss.
        start: a ``state_dict()`` of such a model, on any device.
        end: another.
        alphas: ``A`` positions, 0 at the start and 1 at the end.
        process_group: ranks to split the points over.

    Raises:
        ValueError: also if their names or shapes are not the model's.

    >>> model, other = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(model.weight, 2.0), nn.init.constant_(other.weight, 4.0)
    >>> def loss_fn(model):
    ...     return model.weight.sum()
    >>> interpolation_curve(
    ...     model, loss_fn, model.state_dict(), other.state_dict(), [0.0, 0.25, 1.0]
    ... )
    tensor([2.0000, 2.5000, 4.0000])
    """
    points = [(alpha,) for alpha in _checked_positions("alphas", alphas)]
    tensors = {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}
    starts = _checked_checkpoint("start", start, tensors)
    ends = _checked_checkpoint("end", end, tensors)
    smooth = [name for name, tensor in tensors.items() if is_continuous(tensor)]
    targets, smooth_starts, smooth_ends = (
        [state[name] for name in smooth] for state in (tensors, starts, ends)
    )

    def place(alpha: float) -> None:
        if smooth:
            between = torch._foreach_lerp(smooth_starts, smooth_ends, alpha)
            torch._foreach_copy_(targets, list(between))
        for name in tensors.keys() - set(smooth):
            tensors[name].copy_((starts if alpha < 0.5 else ends)[name])

    return _losses(model, loss_fn, list(model.parameters()), place, points, process_group)


def _losses_along(
    model: nn.Module,
    loss_fn: LossFunction,
    directions: list[dict[str, Tensor]],
    points: Sequence[Point],
    process_group: "ProcessGroup | None",
) -> Tensor:
    if process_group is not None:
        directions = [_first_ranks(direction, process_group) for direction in directions]
    params = dict(model.named_parameters())
    weights = {name: params[name] for direction in directions for name in direction}
    vectors = [
        [
            direction[name] if name in direction else torch.zeros_like(w, dtype=wide(w.dtype))
            for name, w in weights.items()
        ]
        for direction in directions
    ]
    moving: list[Tensor] = list(weights.values())

    def place(*position: float) -> None:
        # Leaving out zeros: adding one would turn -0.0 into 0.0.
        moves = [(vector, c) for vector, c in zip(vectors, position, strict=True) if vector and c]
        if len(moves) > 1:  # rounded once, also in half precision
            shift = list(torch._foreach_mul(moves[0][0], moves[0][1]))
            torch._foreach_add_(shift, moves[1][0], alpha=moves[1][1])
            moves = [(shift, 1)]
        for vector, coordinate in moves:
            torch._foreach_add_(moving, vector, alpha=coordinate)

    return _losses(model, loss_fn, moving, place, points, process_group)


def _losses(
    model: nn.Module,
    loss_fn: LossFunction,
    weights: Sequence[Tensor],
    place: Callable[..., None],
    points: Sequence[Point],
    process_group: "ProcessGroup | None",
) -> Tensor:
    """The losses at all points; ``place`` moves the model from where it was to a point."""
    with preserved(model, weights) as snapshot:

        def loss_at(point: Point) -> Tensor:
            snapshot.rewind()
            with torch.no_grad():
                place(*point)
            return evaluate(model, loss_fn)

        if process_group is None:
            return torch.stack([loss_at(point) for point in points])
        return _split_over_ranks(loss_at, points, process_group)


def _split_over_ranks(
    loss_at: Callable[[Point], Tensor], points: Sequence[Point], process_group: "ProcessGroup"
) -> Tensor:
    rank, ranks = distributed.get_rank(process_group), distributed.get_world_size(process_group)
    # Equally many everywhere, the last point filling up: loss_fn may wait for the other ranks.
    filled = [*points, *[points[-1]] * (-len(points) % ranks)]
    mine = torch.stack([loss_at(point) for point in filled[rank::ranks]])
    gathered = [mine] * ranks
    distributed.all_gather_object(gathered, mine.cpu(), process_group)
    return torch.stack(gathered, dim=1).flatten()[: len(points)].to(mine.device)


def _first_ranks(direction: dict[str, Tensor], process_group: "ProcessGroup") -> dict[str, Tensor]:
    source = distributed.get_global_rank(process_group, 0)
    received = {name: vector.clone() for name, vector in direction.items()}
    for vector in received.values():
        distributed.broadcast(vector, source, process_group)
    return received


def _checked_positions(argument: str, positions: Positions) -> list[float]:
    values = torch.as_tensor(positions, dtype=torch.float64, device="cpu")
    if values.ndim != 1 or values.numel() == 0 or not values.isfinite().all():
        raise ValueError(f"{argument} must be finite numbers in one dimension, got {positions!r}")
    numbers: list[float] = values.tolist()
    middle = len(numbers) // 2
    symmetric = len(numbers) % 2 == 1 and math.isclose(numbers[0], -numbers[-1], rel_tol=1e-6)
    if symmetric and abs(numbers[middle]) <= 1e-6 * abs(numbers[0]):
        numbers[middle] = 0.0
    return numbers


def _checked_checkpoint(
    argument: str, state: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The checkpoint's tensors as the model would load them."""
    found = {name: t for name, t in state.items() if isinstance(t, Tensor)}
    if found.keys() != tensors.keys():
        names = sorted(found.keys() ^ tensors.keys())
        raise ValueError(
            f"{argument} must have the names of model.state_dict(), differs in {names}"
        )
    for name, tensor in tensors.items():
        if found[name].shape != tensor.shape:
            shapes = f"{tuple(tensor.shape)}, got {tuple(found[name].shape)}"
            raise ValueError(f"{argument}[{name!r}] must have the model's shape {shapes}")
    return {name: found[name].to(t.device, t.dtype) for name, t in tensors.items()}
