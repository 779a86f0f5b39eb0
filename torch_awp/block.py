"""One stay at ``w + v``: where each tensor came from, how it moves on, and the way back."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_awp.perturbation import (
    add_scaled_,
    clone_tensors,
    project_element_,
    project_layer_,
    step_scales,
)
from torch_awp.sharding import local_part, placed_like, shard_groups, whole_norms

# Three thirds of a radius may come out above it.
_ROUNDING = 1 + 1e-12


@dataclass(frozen=True)
class Move:
    """One step of one parameter along ``d``: ``v <- project(v + step_size * W * d / ||d||)``."""

    param: Tensor
    direction: Tensor
    gamma: float
    step_size: float


@dataclass
class Layer:
    """A tensor away from home: ``weight`` aliases the parameter's memory, ``norm`` is ``[W]``."""

    weight: Tensor
    backup: Tensor
    norm: Tensor
    travelled: float = 0.0


class Block:
    """The tensors perturbed between entering and leaving; holds one extra copy of each.

    Args:
        constraint: ``"layer"`` for the ball, ``"element"`` for the box.
        epsilon: added to the norms of weights and directions.
        active: whether this step perturbs at all; an inactive block lets nothing move.
    """

    def __init__(self, constraint: str, epsilon: float = 0.0, active: bool = True) -> None:
        self.constraint = constraint
        self.epsilon = epsilon
        self.active = active
        self._layers: dict[Tensor, Layer] = {}
        self._saved: list[tuple[list[Tensor], list[Tensor]]] = []

    @torch.no_grad()
    def move(self, moves: Iterable[Move]) -> None:
        """Move every tensor of ``moves``; tensors that share memory are all saved before."""
        prepared = self._prepare(self._foreach_groups(moves))
        for group, directions, scales in prepared:
            add_scaled_(self._weights(group), directions, scales)
            self._project(group)
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
            if layer := self._layers.get(param):
                wide = torch.promote_types(layer.weight.dtype, torch.float32)
                away = layer.weight.to(wide) - layer.backup.to(wide)
                distance = whole_norms([[away]], [shard_groups(param)])[0]
                for i, norm in enumerate((distance, layer.norm)):
                    squares[i] += norm.double().square().item()
        return (squares[0] / squares[1]) ** 0.5 if squares[1] > 0 else 0.0

    def _foreach_groups(self, moves: Iterable[Move]) -> list[list[Move]]:
        """Group what one foreach call can take: same place, dtype, magnitudes and past."""
        groups: dict[object, list[Move]] = {}
        for move in moves:
            layer = self._layers.get(move.param)
            past = None if layer is None else layer.travelled
            where = (move.param.device, move.param.dtype, shard_groups(move.param))
            key = (where, move.gamma, move.step_size, past)
            groups.setdefault(key, []).append(move)
        return list(groups.values())

    def _prepare(self, groups: list[list[Move]]) -> list[tuple[list[Move], list[Tensor], Tensor]]:
        """Save what moves for the first time; return each group's directions and scales ``[L]``."""
        directions = [[_direction(move) for move in group] for group in groups]
        fresh = [
            [_as_real(move.param) for move in group if move.param not in self._layers]
            for group in groups
        ]
        # All at once, since parts that lie in other processes cost a collective.
        norms = whole_norms(
            [weights + along for weights, along in zip(fresh, directions, strict=True)],
            [shard_groups(group[0].param) for group in groups],
        )
        prepared = []
        for group, weights, along, norm in zip(groups, fresh, directions, norms, strict=True):
            if weights:
                self._save(group, weights, norm[: len(group)])
            step_size, direction_norms = group[0].step_size, norm[-len(group) :]
            weight_norms = self._weight_norms(group)
            scales = step_scales(weight_norms, direction_norms, step_size, self.epsilon)
            prepared.append((group, along, scales))
        return prepared

    def _save(self, group: Sequence[Move], weights: list[Tensor], weight_norms: Tensor) -> None:
        backups = clone_tensors(weights)
        self._saved.append((weights, backups))
        norms = torch.split(weight_norms, 1)
        for move, weight, backup, norm in zip(group, weights, backups, norms, strict=True):
            self._layers[move.param] = Layer(weight, backup, norm)

    def _project(self, group: Sequence[Move]) -> None:
        gamma = group[0].gamma
        for move in group:
            self._layers[move.param].travelled += move.step_size
        weights = self._weights(group)
        backups = [self._layers[move.param].backup for move in group]
        if self.constraint == "element":
            project_element_(weights, backups, gamma)
        # A way no longer than the radius cannot have left the ball, unless epsilon stretched it.
        elif self.epsilon > 0 or self._layers[group[0].param].travelled > gamma * _ROUNDING:
            places = [shard_groups(group[0].param)]
            radii = gamma * self._weight_norms(group)
            project_layer_(weights, backups, radii, lambda away: whole_norms([away], places)[0])

    def _weights(self, group: Sequence[Move]) -> list[Tensor]:
        return [self._layers[move.param].weight for move in group]

    def _weight_norms(self, group: Sequence[Move]) -> Tensor:
        return torch.cat([self._layers[move.param].norm for move in group])


def _direction(move: Move) -> Tensor:
    return _as_real(placed_like(move.direction.to(move.param.dtype), move.param).resolve_conj())


def _as_real(tensor: Tensor) -> Tensor:
    """A dense, real view of what lies here, with at least one dimension, as lists take it."""
    tensor = local_part(tensor)
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.unsqueeze(0) if tensor.ndim == 0 else tensor
