"""One stay at ``w + v``: where each tensor came from, how it moves on, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from torch_awp.functional import (
    PIECE,
    Numbers,
    add_scaled_,
    alike,
    clone_tensors,
    on_host,
    project_element_,
    project_layer_,
    step_scales,
    wide,
)
from torch_awp.sharding import local_part, placed_like, shard_groups, whole_norms

if TYPE_CHECKING:  # torch can be built without it
    from torch.distributed import ProcessGroup

# Three thirds of a radius may come out above it.
_ROUNDING = 1 + 1e-12


class Move(NamedTuple):
    """One step of one parameter along ``d``: ``v <- project(v + step_size * W * d / ||d||)``."""

    param: Tensor
    direction: Tensor
    gamma: float
    step_size: float


@dataclass(eq=False)
class Layer:
    """What lies here of a parameter: ``home`` its memory, ``weight`` a real view to compute with.

    ``backup`` is a copy of the weight at home, ``norm`` is ``W`` of the whole tensor and
    ``travelled`` the length of its way from home in units of it.
    """

    param: Tensor
    home: Tensor
    weight: Tensor
    groups: tuple[ProcessGroup, ...]
    place: tuple[int, torch.Size]
    backup: Tensor | None = None
    norm: float | Tensor = 0.0
    travelled: float = 0.0

    @classmethod
    def of(cls, param: Tensor) -> Layer:
        groups = shard_groups(param)
        home = local_part(param.detach())
        if home.layout != torch.strided:
            raise RuntimeError(
                f"a parameter of shape {tuple(param.shape)} has the layout {home.layout}: only "
                "strided ones can be perturbed, leave it out with select"
            )
        place = (home.data_ptr(), home.shape)
        return cls(param, home, _as_real(home, home), groups, place)

    def is_there(self) -> bool:
        """Whether the parameter still lies where it did."""
        now = local_part(self.param.detach()) if self.groups else self.param
        return (now.data_ptr(), now.shape) == self.place

    def follow(self) -> None:
        """Look where the parameter lies now, if somebody gave it other memory while away."""
        now = local_part(self.param.detach())
        if now.shape != self.home.shape or now.dtype != self.home.dtype:
            raise RuntimeError(
                f"a parameter of shape {tuple(self.home.shape)} and {self.home.dtype} became one "
                f"of {tuple(now.shape)} and {now.dtype} while perturbed: it cannot climb on"
            )
        self.weight = _as_real(now, now)

    def come_home(self) -> None:
        """Give the parameter back the memory it had."""
        if self.groups:
            local_part(self.param.detach()).copy_(self.home)
        else:
            self.param.data = self.home
        self.weight = _as_real(self.home, self.home)

    def along(self, direction: Tensor) -> Tensor:
        """A direction of the parameter as one of ``weight``."""
        if direction.dtype != self.param.dtype:
            direction = direction.to(self.param.dtype)
        if type(direction) is Tensor and self.weight is self.home:
            return direction if direction.layout == torch.strided else direction.to_dense()
        return _as_real(local_part(placed_like(direction, self.param)), self.home)


@dataclass(eq=False)
class Batch:
    """Moves that one call can make: same place, dtype, magnitudes and past."""

    gamma: float
    step_size: float
    groups: tuple[ProcessGroup, ...]
    travelled: float
    layers: list[Layer] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    directions: list[Tensor] = field(default_factory=list)

    @property
    def backups(self) -> list[Tensor]:
        return [layer.backup for layer in self.layers if layer.backup is not None]

    @property
    def weight_norms(self) -> Numbers:
        norms = [layer.norm for layer in self.layers]
        return torch.stack(norms) if isinstance(norms[0], Tensor) else norms  # type: ignore[arg-type, return-value]

    @weight_norms.setter
    def weight_norms(self, norms: Numbers) -> None:
        for layer, norm in zip(self.layers, norms, strict=True):
            layer.norm = norm


@dataclass(eq=False, repr=False)
class Perturbation:
    """Context in which weights can be away from home; on leaving they are back bit for bit.

    Args:
        constraint: ``"layer"`` for the ball, ``"element"`` for the box.
        epsilon: added to the norms of weights and directions.
        places: layers of the last stay by their parameters' ids; afterwards those of this one.
        keep_memory: whether that of the backups serves again, on the host, where fresh memory comes
            page by page, emptied, which takes two to three times as long as copying 100 MB.
    """

    constraint: str
    epsilon: float = 0.0
    places: dict[int, Layer] = field(default_factory=dict)
    keep_memory: bool = True
    _layers: dict[int, Layer] = field(default_factory=dict, init=False)  # those away, by id as well
    _saved: list[tuple[list[Tensor], list[Tensor]]] = field(default_factory=list, init=False)

    def __enter__(self) -> Perturbation:
        return self

    def __exit__(self, *exception: object) -> None:
        insist(self._restore)
        self.places.clear()
        self.places.update(self._layers)
        for layer in self._layers.values():
            if not (self.keep_memory and on_host(layer.weight)):
                layer.backup = None

    def __del__(self) -> None:
        # Where even leaving was interrupted: at the latest when nobody holds the traceback.
        if self.away:
            insist(self._restore)

    @property
    def away(self) -> bool:
        """Whether any tensor has left home, to which it is not back yet."""
        return bool(self._saved)

    @torch.inference_mode(False)
    @torch.no_grad()
    def wander(
        self, radii: Sequence[tuple[Tensor, float]], noise_like: Callable[[Tensor], Tensor]
    ) -> None:
        """Move every parameter by its gamma along noise, drawn when its turn comes."""
        self._save(param for param, _ in radii)
        for portion in _portions(radii):
            self.move([Move(p, noise_like(p), gamma, gamma) for p, gamma in portion])

    def _save(self, params: Iterable[Tensor]) -> list[Layer]:
        """Copy what is still at home; tensors that share memory must all be saved before moves."""
        layers, new = [], []
        for param in params:
            layer = self._layers.get(id(param))
            if layer is None:
                layer = self._new_layer(param)
                new.append(layer)
            elif not layer.is_there():
                layer.follow()
            layers.append(layer)
        for together in alike(new, lambda layer: layer.weight):
            self._copy(together)
        return layers

    @torch.inference_mode(False)
    @torch.no_grad()
    def move(self, moves: Sequence[Move]) -> bool:
        """Move every tensor of ``moves``.

        Returns:
            False where all directions are known to be zero, though a weight is not; they are not
            known where reading them would wait.
        """
        batches = _batches(moves, self._save(move.param for move in moves))
        # All at once, since parts that lie in other processes cost a collective.
        norms = whole_norms(
            [([] if batch.travelled else batch.backups) + batch.directions for batch in batches],
            [batch.groups for batch in batches],
        )
        idle = True
        for batch, numbers in zip(batches, norms, strict=True):
            if not batch.travelled:
                batch.weight_norms = numbers[: len(batch.layers)]
            along = numbers[-len(batch.layers) :]
            idle = idle and isinstance(along, list) and not any(along)
            scales = step_scales(batch.weight_norms, along, batch.step_size, self.epsilon)
            add_scaled_(batch.weights, batch.directions, scales)
            self._project(batch)
        torch.clear_autocast_cache()
        return not idle or not any(layer.norm for layer in self._layers.values())

    @torch.no_grad()
    def relative_distance(self, params: Iterable[Tensor]) -> float:
        """Return ``||v|| / ||w||`` of all tensors among ``params`` together that have moved."""
        squares = [0.0, 0.0]
        for layer in (self._layers[id(param)] for param in params if id(param) in self._layers):
            dtype = wide(layer.weight.dtype)
            away = layer.weight.to(dtype) - layer.backup.to(dtype)  # type: ignore[union-attr]
            distance = whole_norms([[away]], [layer.groups])[0][0]
            for i, norm in enumerate((distance, layer.norm)):
                squares[i] += float(norm) ** 2
        return (squares[0] / squares[1]) ** 0.5 if squares[1] > 0 else 0.0

    def _new_layer(self, param: Tensor) -> Layer:
        layer = self.places.get(id(param))
        return layer if layer is not None and layer.is_there() else Layer.of(param)

    def _copy(self, layers: list[Layer]) -> None:
        for layer in layers:
            layer.travelled = 0.0  # here, since the end of the last stay can have been interrupted
        weights = [layer.weight for layer in layers]
        backups = [layer.backup for layer in layers if layer.backup is not None]
        if len(backups) == len(weights):
            torch._foreach_copy_(backups, weights)
        else:
            backups = clone_tensors(weights)
            for layer, backup in zip(layers, backups, strict=True):
                layer.backup = backup
        self._saved.append((weights, backups))
        self._layers.update((id(layer.param), layer) for layer in layers)

    def _project(self, batch: Batch) -> None:
        travelled = batch.travelled + abs(batch.step_size)
        for layer in batch.layers:
            layer.travelled = travelled
        if self.constraint == "element":
            project_element_(batch.weights, batch.backups, batch.gamma)
        # A way no longer than the radius cannot have left the ball, unless epsilon stretched it.
        elif self.epsilon > 0 or travelled > batch.gamma * _ROUNDING:
            # Of layers whose parts lie elsewhere, too.
            whole = (
                (lambda parts: whole_norms([parts], [batch.groups])[0]) if batch.groups else None
            )
            project_layer_(batch.weights, batch.backups, batch.gamma, batch.weight_norms, whole)

    def _restore(self) -> None:
        for weights, backups in reversed(self._saved):  # tensors that share memory: first is home
            torch._foreach_copy_(weights, backups)
        for layer in self._layers.values():
            if not layer.is_there():
                layer.come_home()
        torch.clear_autocast_cache()
        self._saved.clear()  # last: only what is home must not be brought there again


def insist(restore: Callable[[], None], attempts: int = 5) -> None:
    """Restore, and again if that was interrupted: often is harmless, half is not."""
    try:
        restore()
    except BaseException:  # a second Ctrl-C, say
        if attempts > 1:
            insist(restore, attempts - 1)
        raise


def _portions(radii: Sequence[tuple[Tensor, float]]) -> Iterator[list[tuple[Tensor, float]]]:
    """What moves at a time: on the host little, so that the noise of all never exists at once."""
    portion: list[tuple[Tensor, float]] = []
    room = PIECE
    for param, gamma in radii:
        room -= param.numel() if on_host(param) else 0
        if portion and room < 0:
            yield portion
            portion, room = [], PIECE - param.numel()
        portion.append((param, gamma))
    if portion:
        yield portion


def _batches(moves: Sequence[Move], layers: list[Layer]) -> list[Batch]:
    batches: dict[object, Batch] = {}
    for (_, direction, gamma, step_size), layer in zip(moves, layers, strict=True):
        weight = layer.weight
        common = (gamma, step_size, layer.groups, layer.travelled)
        key = (weight.dtype, weight.device, *common)
        batch = batches.get(key)
        if batch is None:
            batch = batches[key] = Batch(*common)
        batch.layers.append(layer)
        batch.weights.append(weight)
        batch.directions.append(layer.along(direction))
    return list(batches.values())


def _as_real(tensor: Tensor, home: Tensor) -> Tensor:
    """A dense, real tensor with at least one dimension, as ``home`` lies in memory."""
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if home.is_conj():
        tensor = tensor.conj()
    if home.is_neg():
        tensor = torch._neg_view(tensor)
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj().resolve_neg())
    return tensor.unsqueeze(0) if tensor.ndim == 0 else tensor
