"""The weights at `w + v`: a backup of each `w`, the moves, and how they are restored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from torch_awp.functional import (
    RowOwners,
    add_scaled_,
    alike,
    distances,
    norms,
    on_host,
    project_element_,
    project_layer_,
    step_scales,
)
from torch_awp.sharding import (
    Groups,
    is_plain,
    is_sharded,
    local_part,
    placed_like,
    shard_groups,
    whole_norms,
)

# Three thirds of a radius may come out above it.
_ROUNDING = 1 + 1e-12


class Move(NamedTuple):
    """One step of a parameter along `d`: `v <- project(v + step_size * W * d / ||d||)`."""

    param: Tensor
    direction: Tensor
    gamma: float
    step_size: float


@dataclass(eq=False)
class Workspace:
    """What one perturbation leaves to the next.

    Fresh memory comes to the host page by page, emptied, which takes two to three times as long as
    a copy of 100 MB; so backups there are used again.
    """

    backups: dict[Tensor, Tensor] = field(default_factory=dict)
    row_owners: RowOwners = field(default_factory=dict)


@dataclass(eq=False)
class Saved:
    """A parameter with a backup: `local` is its memory here, `weight` a real view of that."""

    param: Tensor
    local: Tensor
    weight: Tensor
    backup: Tensor
    version: int = 0

    def is_in_place(self) -> bool:
        """Whether the parameter still has the memory that it had."""
        now = self.param if is_plain(self.param) else local_part(self.param.detach())
        return _memory(now) == _memory(self.local)

    def follow(self) -> None:
        """Move on in the memory that somebody gave the parameter while it was perturbed."""
        now = local_part(self.param.detach())
        if now.shape != self.local.shape or now.dtype != self.local.dtype:
            raise RuntimeError(
                f"a parameter of shape {tuple(self.local.shape)} and {self.local.dtype} became one "
                f"of {tuple(now.shape)} and {now.dtype} while perturbed: it cannot be moved on"
            )
        self.weight = _as_real(now)

    def put_back(self) -> None:
        """Give the parameter its own memory again."""
        if is_sharded(self.param):
            local_part(self.param.detach()).copy_(self.local)
        else:
            self.param.data = self.local


class _Group(NamedTuple):
    """Tensors that one call can move: same device, dtypes, magnitudes and process groups."""

    gamma: float
    step_size: float
    shards: Groups
    params: list[Tensor]
    weights: list[Tensor]
    backups: list[Tensor]
    directions: list[Tensor]


class Perturbation:
    """Context in which weights may be perturbed; on leaving they are restored bit for bit.

    Args:
        constraint: `"layer"` for the ball, `"element"` for the box.
        epsilon: added to the norms of weights and directions.
        workspace: what an earlier perturbation left.

    Attributes:
        overwritten: after leaving, the parameters into which others wrote while they were
            perturbed: that is undone.
    """

    def __init__(
        self, constraint: str = "layer", epsilon: float = 0.0, workspace: Workspace | None = None
    ) -> None:
        self.constraint, self.epsilon = constraint, epsilon
        self.overwritten: list[Tensor] = []
        self._workspace = Workspace() if workspace is None else workspace
        self._saved: dict[Tensor, Saved] = {}
        self._copies: list[tuple[list[Tensor], list[Tensor]]] = []  # what restoring copies back
        self._weight_norms: dict[tuple[int, ...], Tensor] = {}
        self._length = 0.0  # of the longest path so far, relative to the radius

    def __enter__(self) -> Perturbation:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self._note_writes()
        finally:
            retry(self._restore)

    def __del__(self) -> None:
        # Where even leaving was interrupted: at the latest when nobody holds the traceback.
        if self.active:
            retry(self._restore)

    @property
    def active(self) -> bool:
        """Whether a weight is perturbed."""
        return bool(self._copies)

    @torch.inference_mode(False)
    @torch.no_grad()
    def move(self, moves: Sequence[Move]) -> bool:
        """Perturb (further) by `v <- project(v + step_size * W * d / ||d||)`.

        Returns:
            False where all directions are known to be zero, though a weight is not; they are not
            known where reading them would wait.
        """
        self.save([move.param for move in moves])
        self._note_writes()
        groups = self._grouped(moves)
        weight_norms, direction_norms = self._norms(groups)
        self._length += max((abs(m.step_size) / m.gamma for m in moves if m.gamma), default=0.0)
        for group, weight_norm, norm in zip(groups, weight_norms, direction_norms, strict=True):
            scales = step_scales(weight_norm, norm, group.step_size, self.epsilon)
            row_owners = self._workspace.row_owners
            add_scaled_(group.weights, group.directions, scales, row_owners)
            if self.constraint == "element":
                project_element_(group.weights, group.backups, group.gamma)
            # A path no longer than the radius cannot leave the ball, unless epsilon stretched it.
            elif self.epsilon > 0 or self._length > _ROUNDING:
                here = distances(group.weights, group.backups)
                (whole,) = whole_norms([here], [group.shards])
                radii = group.gamma * weight_norm
                project_layer_(group.weights, group.backups, radii, whole, row_owners)
        for saved in self._saved.values():
            saved.version = saved.weight._version
        torch.clear_autocast_cache()
        return any(not on_host(norm) or bool(norm.any()) for norm in direction_norms) or not any(
            bool(norm.any()) for norm in weight_norms
        )

    @torch.inference_mode(False)
    @torch.no_grad()
    def save(self, params: Iterable[Tensor]) -> None:
        """Back up what is not yet: before any of them moves, since they may share memory."""
        new = []
        for param in params:
            saved = self._saved.get(param)
            if saved is None:
                saved = self._saved[param] = self._newly_saved(param)
                new.append(saved)
            elif not saved.is_in_place():
                saved.follow()
        for weights, backups in alike([s.weight for s in new], [s.backup for s in new]):
            torch._foreach_copy_(backups, weights)
            self._copies.append((weights, backups))
        for saved in new:
            saved.version = saved.weight._version

    def _newly_saved(self, param: Tensor) -> Saved:
        local = local_part(param.detach())
        if local.layout != torch.strided or local.is_conj() or local.is_neg():
            raise RuntimeError(
                f"a parameter of shape {tuple(param.shape)} has the layout {local.layout} or is a "
                "lazy conjugate: only strided tensors can be perturbed, leave it out with select"
            )
        weight = _as_real(local)
        backup = self._workspace.backups.get(param)
        if backup is None or _form(backup) != _form(weight):
            backup = torch.empty_like(weight)
        return Saved(param, local, weight, backup)

    def _grouped(self, moves: Sequence[Move]) -> list[_Group]:
        groups: dict[object, _Group] = {}
        for param, direction, gamma, step_size in moves:
            saved, shards = self._saved[param], shard_groups(param)
            direction = _as_real(local_part(placed_like(direction, param)))
            common = (gamma, step_size, shards)
            key = (saved.weight.device, saved.weight.dtype, direction.dtype, *common)
            group = groups.setdefault(key, _Group(*common, [], [], [], []))
            for tensors, tensor in zip(
                group[3:], (param, saved.weight, saved.backup, direction), strict=True
            ):
                tensors.append(tensor)
        return list(groups.values())

    def _norms(self, groups: list[_Group]) -> tuple[list[Tensor], list[Tensor]]:
        """Norms of weights and directions; all at once, since shards cost a collective."""
        keys = [tuple(map(id, group.params)) for group in groups]
        new = [i for i, key in enumerate(keys) if key not in self._weight_norms]
        found = whole_norms(
            [norms(group.directions) for group in groups] + [norms(groups[i].backups) for i in new],
            [group.shards for group in (*groups, *(groups[i] for i in new))],
        )
        self._weight_norms.update(zip([keys[i] for i in new], found[len(groups) :], strict=True))
        return [self._weight_norms[key] for key in keys], found[: len(groups)]

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Context in which the weights are at `w`, which a pending backward pass does not see."""
        away = [[weight.detach().clone() for weight in weights] for weights, _ in self._copies]
        for weights, backups in reversed(self._copies):
            _copy_unseen(weights, backups)
        try:
            yield
        finally:
            for (weights, _), values in zip(self._copies, away, strict=True):
                _copy_unseen(weights, values)

    def _note_writes(self) -> None:
        for saved in self._saved.values():
            if saved.weight._version != saved.version:
                saved.version = saved.weight._version
                self.overwritten.append(saved.param)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _restore(self) -> None:
        for weights, backups in reversed(self._copies):  # of shared memory the first backup is w
            torch._foreach_copy_(weights, backups)
        for saved in self._saved.values():
            if not saved.is_in_place():
                saved.put_back()
        torch.clear_autocast_cache()
        self._workspace.backups.clear()
        self._workspace.backups.update(
            (s.param, s.backup) for s in self._saved.values() if on_host(s.backup)
        )
        self._copies.clear()  # last: only what is restored must not be restored again


def retry(restore: Callable[[], None], attempts: int = 5) -> None:
    """Restore, and again if that was interrupted: often is harmless, half is not."""
    try:
        restore()
    except BaseException:  # a second Ctrl-C, say
        if attempts > 1:
            retry(restore, attempts - 1)
        raise


@torch.inference_mode(False)
@torch.no_grad()
def _copy_unseen(weights: list[Tensor], values: list[Tensor]) -> None:
    """Copy without a trace in the versions by which autograd finds what it saved overwritten."""
    with torch.autograd._unsafe_preserve_version_counter(tuple(weights)):  # type: ignore[attr-defined]
        torch._foreach_copy_(weights, values)
    torch.clear_autocast_cache()


def _memory(tensor: Tensor) -> tuple[object, ...]:
    """What tells two views of memory apart, on devices without addresses too."""
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def _form(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.dtype, tensor.device


def _as_real(tensor: Tensor) -> Tensor:
    """A dense real tensor with at least one dimension, which shares the memory of a strided one."""
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    tensor = tensor.resolve_neg()
    return tensor.unsqueeze(0) if tensor.ndim == 0 else tensor
