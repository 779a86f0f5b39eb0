"""One stay at ``w + v``: where each tensor came from, how it moves on, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from torch_awp.memory import BackupMemory
from torch_awp.perturbation import (
    PIECE,
    add_scaled_,
    frobenius_norms,
    on_host,
    project_element_,
    project_layer_,
    step_scales,
)
from torch_awp.sharding import local_part, placed_like, shard_groups, whole_norms

if TYPE_CHECKING:  # torch can be built without it
    from torch.distributed import ProcessGroup

# Three thirds of a radius may come out above it.
_ROUNDING = 1 + 1e-12


class Move(NamedTuple):
    """One step of one parameter along ``d``: ``v <- project(v + step_size * W * d / ||d||)``."""

    param: Tensor
    direction_of: Callable[[Tensor], Tensor]
    gamma: float
    step_size: float


@dataclass
class Layer:
    """A tensor away from home: ``weight`` aliases the parameter's memory, ``norm`` is ``[W]``."""

    param: Tensor
    weight: Tensor
    backup: Tensor
    norm: Tensor
    travelled: float = 0.0


@dataclass
class Batch:
    """Tensors that one call can take: same place, dtype, magnitudes and past."""

    gamma: float
    step_size: float
    groups: tuple[ProcessGroup, ...] = ()
    moves: list[Move] = field(default_factory=list)
    directions: list[Tensor] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)

    @property
    def weights(self) -> list[Tensor]:
        return [layer.weight for layer in self.layers]

    @property
    def weight_norms(self) -> Tensor:
        return torch.cat([layer.norm for layer in self.layers])


class Block:
    """The tensors perturbed between entering and leaving; holds one extra copy of each.

    Args:
        constraint: ``"layer"`` for the ball, ``"element"`` for the box.
        epsilon: added to the norms of weights and directions.
        active: whether this step perturbs at all; an inactive block lets nothing move.
        memory: where the copies lie.
    """

    def __init__(
        self,
        constraint: str,
        epsilon: float = 0.0,
        active: bool = True,
        memory: BackupMemory | None = None,
    ) -> None:
        self.constraint = constraint
        self.epsilon = epsilon
        self.active = active
        self._memory = BackupMemory() if memory is None else memory
        self._layers: dict[int, Layer] = {}  # by the parameter's id
        self._saved: list[tuple[list[Tensor], list[Tensor]]] = []

    @torch.no_grad()
    def move(self, moves: Iterable[Move]) -> None:
        """Move every tensor of ``moves``; tensors that share memory are all saved before."""
        near, far = self._batches(moves)
        # Saved just before it moves, a tensor is still in the cache when it does.
        at_once = not far and _lie_apart([move.param for batch in near for move in batch.moves])
        if not at_once:
            for batch in near:
                self._save_near(batch)
        self._climb(far)
        for batch in near:
            if at_once:
                self._save_near(batch)
            batch.directions = [_direction(move) for move in batch.moves]
            self._climb([batch])
            batch.directions = []
        torch.clear_autocast_cache()

    @torch.no_grad()
    def restore(self) -> None:
        """Bring every weight back bit for bit, in its own storage."""
        for weights, backups in reversed(self._saved):  # tensors that share memory: first is home
            torch._foreach_copy_(weights, backups)
        torch.clear_autocast_cache()

    @torch.no_grad()
    def relative_distance(self, params: Iterable[Tensor]) -> float:
        """Return ``||v|| / ||w||`` of all tensors among ``params`` together that have moved."""
        squares = [0.0, 0.0]
        for param in params:
            if layer := self._layers.get(id(param)):
                wide = torch.promote_types(layer.weight.dtype, torch.float32)
                away = layer.weight.to(wide) - layer.backup.to(wide)
                distance = whole_norms([[away]], [shard_groups(param)])[0]
                for i, norm in enumerate((distance, layer.norm)):
                    squares[i] += norm.double().square().item()
        return (squares[0] / squares[1]) ** 0.5 if squares[1] > 0 else 0.0

    def _batches(self, moves: Iterable[Move]) -> tuple[list[Batch], list[Batch]]:
        """Divide moves into those that lie on the host as a whole, and others.

        The host works on few tensors at a time, in the order of ``moves``: what one pass over
        memory leaves in its cache serves the next, and directions are made when their turn comes.
        Elsewhere all that fit together are one batch, which has its directions.
        """
        near: list[Batch] = []
        far: dict[object, Batch] = {}
        last: object = None
        room = 0
        for move in moves:
            param, _, gamma, step_size = move
            layer = self._layers.get(id(param))
            past = None if layer is None else layer.travelled
            alike = (param.dtype, gamma, step_size, past)
            if not on_host(param):
                groups = shard_groups(param)
                key = (alike, param.device, groups)
                batch = far.setdefault(key, Batch(gamma, step_size, groups))
                batch.directions.append(_direction(move))
            else:
                size = param.numel()
                if alike != last or size > room:
                    near.append(Batch(gamma, step_size))
                    last, room = alike, PIECE
                batch = near[-1]
                room -= size
            batch.moves.append(move)
            if layer is not None:
                batch.layers.append(layer)
        return near, list(far.values())

    def _climb(self, batches: list[Batch]) -> None:
        for batch, scales in self._prepare(batches):
            add_scaled_(batch.weights, batch.directions, scales)
            self._project(batch)

    def _prepare(self, batches: list[Batch]) -> list[tuple[Batch, Tensor]]:
        """Save what moves for the first time; return each batch with its scales ``[L]``."""
        unsaved = [
            [] if batch.layers else [_as_real(move.param) for move in batch.moves]
            for batch in batches
        ]
        # All at once, since parts that lie in other processes cost a collective.
        norms = whole_norms(
            [weights + batch.directions for weights, batch in zip(unsaved, batches, strict=True)],
            [batch.groups for batch in batches],
        )
        prepared = []
        for batch, weights, norm in zip(batches, unsaved, norms, strict=True):
            if weights:
                self._save(batch, weights, self._memory.copies(weights), norm[: len(weights)])
            along = norm[-len(batch.moves) :]
            scales = step_scales(batch.weight_norms, along, batch.step_size, self.epsilon)
            prepared.append((batch, scales))
        return prepared

    def _save_near(self, batch: Batch) -> None:
        if not batch.layers:
            weights = [_as_real(move.param) for move in batch.moves]
            backups = self._memory.copies(weights)
            self._save(batch, weights, backups, frobenius_norms(backups))

    def _save(
        self, batch: Batch, weights: list[Tensor], backups: list[Tensor], weight_norms: Tensor
    ) -> None:
        self._saved.append((weights, backups))
        norms = torch.split(weight_norms, 1)
        for move, weight, backup, norm in zip(batch.moves, weights, backups, norms, strict=True):
            layer = Layer(move.param, weight, backup, norm)
            self._layers[id(move.param)] = layer
            batch.layers.append(layer)

    def _project(self, batch: Batch) -> None:
        for layer in batch.layers:
            layer.travelled += batch.step_size
        backups = [layer.backup for layer in batch.layers]
        if self.constraint == "element":
            project_element_(batch.weights, backups, batch.gamma)
        # A way no longer than the radius cannot have left the ball, unless epsilon stretched it.
        elif self.epsilon > 0 or batch.layers[0].travelled > batch.gamma * _ROUNDING:
            radii = batch.gamma * batch.weight_norms
            places = [batch.groups]
            project_layer_(
                batch.weights, backups, radii, lambda away: whole_norms([away], places)[0]
            )


def _lie_apart(params: list[Tensor]) -> bool:
    """Whether every tensor has its memory for itself."""
    return len({param.untyped_storage().data_ptr() for param in params}) == len(params)


def _direction(move: Move) -> Tensor:
    direction = move.direction_of(move.param)
    if direction.dtype != move.param.dtype:
        direction = direction.to(move.param.dtype)
    return _as_real(placed_like(direction, move.param))


def _as_real(tensor: Tensor) -> Tensor:
    """A dense, real view of what lies here, with at least one dimension, as lists take it."""
    tensor = local_part(tensor)
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.unsqueeze(0) if tensor.ndim == 0 else tensor
