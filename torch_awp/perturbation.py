"""The weights at `w + v`: a backup of each `w`, the moves, and how they are restored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_awp import functional, sharding
from torch_awp.running_stats import is_writable

# Three thirds of a radius may come out above it.
_ROUNDING = 1 + 1e-12


class Move(NamedTuple):
    """One step of a parameter along `d`: `v <- project(v + step_size * W * d / ||d||)`."""

    param: Tensor
    direction: Tensor
    gamma: float
    step_size: float


@dataclass(eq=False)
class Saved:
    """A parameter with a backup: `local` is its part here, `weight` a real view of that."""

    param: Tensor
    local: Tensor
    weight: Tensor
    backup: Any  # a tensor, or None until the next perturbation
    shards: sharding.Groups
    memory: tuple[object, ...]
    version: int = 0  # of the weight, as we left it
    path: float = 0.0  # length of its moves so far, relative to the weight's norm

    def is_in_place(self) -> bool:
        """Whether the parameter still has the memory that it had."""
        return _memory(self.param) == self.memory


class Perturbation:
    """Context in which weights may be perturbed; on leaving they are restored bit for bit.

    Args:
        constraint: `"layer"` for the ball, `"element"` for the box.
        epsilon: added to the norms of weights and directions.
        earlier: what an earlier perturbation saved on the host, to use its memory again: there
            fresh memory comes page by page, emptied, which takes longer than the copy itself.

    Attributes:
        overwritten: the parameters into which others wrote while they were perturbed: that is
            undone.
    """

    _copies: Any = ()  # of one that torch.compile makes, without __init__

    def __init__(self, constraint: str, epsilon: float, earlier: dict[Tensor, Saved]) -> None:
        self.constraint, self.epsilon = constraint, epsilon
        self.overwritten: list[Tensor] = []
        self._earlier = earlier
        self._saved: dict[Tensor, Saved] = {}
        self._norms: dict[tuple[int, ...], Tensor] = {}
        self._copies = []  # what restoring copies back: weights and backups of a kind

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
    def move(self, params: Iterable[Tensor], portions: Iterable[Sequence[Move]]) -> bool:
        """Perturb (further) by one portion of moves after the other.

        Args:
            params: the parameters of all portions; one that shares memory with another must be
                saved before that moves.
            portions: the moves, which are made one by one.

        Returns:
            False where all directions are known to be zero, though a weight is not; they are not
            known where reading them would wait.
        """
        self._note_writes()
        params = list(params)
        try:
            self._save(params)
            found = list(map(self._move, portions))  # a portion takes the memory of the one before
        except (NotImplementedError, TypeError) as error:
            for param in params:
                if type(param) not in sharding.PLAIN and not sharding.is_sharded(param):
                    raise RuntimeError(
                        f"a parameter of shape {tuple(param.shape)} is of class "
                        f"{type(param).__name__}, which lacks an operation: leave it out by select"
                    ) from error
            raise
        for saved in self._saved.values():
            saved.version = saved.weight._version
        torch.clear_autocast_cache()
        return any(found) or not found

    def _move(self, moves: Sequence[Move]) -> bool:
        """Compute `v <- project(v + step_size * W * d / ||d||)`."""
        groups: dict[Any, tuple[list[Tensor], ...]] = defaultdict(lambda: ([], [], []))
        for param, direction, gamma, step_size in moves:
            saved = self._saved[param]
            saved.path += abs(step_size)
            if type(direction) not in sharding.PLAIN:
                direction = sharding.part_placed_like(direction, param)
            direction = _as_real(direction)
            # What one call can take. All processes find the same: strides of parts may differ.
            kind = saved.weight.device, saved.weight.dtype, direction.dtype, saved.shards
            weights, backups, directions = groups[(*kind, gamma, step_size, saved.path)]
            weights.append(saved.weight)
            backups.append(saved.backup)
            directions.append(direction)
        # The norms of all at once, since those of sharded tensors cost a collective.
        norms = sharding.whole_norms(
            [
                of_list
                for _, backups, directions in groups.values()
                for of_list in (self._norms_of(backups), functional.norms(directions))
            ],
            [kind[3] for kind in groups for _ in range(2)],
        )
        for i, (kind, (weights, backups, directions)) in enumerate(groups.items()):
            *_, shards, gamma, step_size, path = kind
            weight_norms, direction_norms = norms[2 * i : 2 * i + 2]
            scales = functional.step_scales(weight_norms, direction_norms, step_size, self.epsilon)
            functional.add_scaled_(weights, directions, scales)
            if self.constraint == "element":
                functional.project_element_(weights, backups, gamma)
            # A path no longer than the radius cannot leave the ball, unless epsilon stretched it.
            elif self.epsilon > 0 or path > gamma * _ROUNDING:
                here = functional.distances(weights, backups)
                (distances,) = sharding.whole_norms([here], [shards])
                functional.project_layer_(weights, backups, gamma * weight_norms, distances)
        if not all(map(functional.on_host, norms)):
            return True
        known = [any(norm.tolist()) for norm in norms]
        return any(known[1::2]) or not any(known[::2])

    def _norms_of(self, backups: list[Tensor]) -> Tensor:
        key = tuple(map(id, backups))  # each ascent has the same
        if key not in self._norms:
            self._norms[key] = functional.norms(backups)
        return self._norms[key]

    def _save(self, params: list[Tensor]) -> None:
        """Back up what is not yet."""
        new: dict[Tensor, Saved] = {}
        for param in params:
            known, earlier = self._saved.get(param), self._earlier.get(param)
            if known is None:
                new[param] = earlier if earlier and earlier.is_in_place() else _saved(param)
            elif not known.is_in_place():
                raise RuntimeError(
                    f"a parameter of shape {tuple(known.local.shape)} was given other memory while "
                    "it was perturbed: it cannot be perturbed further"
                )
        for saved in new.values():
            if saved.backup is None:
                saved.backup = torch.empty_like(saved.weight)
            saved.path = 0.0
        pairs = [saved.weight for saved in new.values()], [saved.backup for saved in new.values()]
        # On the host one call does them one by one.
        on_host = new and all(map(functional.on_host, pairs[0]))
        for weights, backups in [pairs] if on_host else functional.alike(*pairs):
            torch._foreach_copy_(backups, weights)
            self._copies.append((weights, backups))
        for saved in new.values():
            saved.version = saved.weight._version
        self._saved |= new  # not before: one that is in it has a backup

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Context in which the weights are at `w`, which a pending backward pass does not see."""
        weights = [saved.weight for saved in self._saved.values()]
        backups = [saved.backup for saved in self._saved.values()]
        perturbed = [weight.detach().clone() for weight in weights]
        _copy_unseen(weights[::-1], backups[::-1])
        try:
            yield
        finally:
            _copy_unseen(weights, perturbed)

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
                if sharding.is_sharded(saved.param):
                    sharding.local_part(saved.param.detach()).copy_(saved.local)
                else:
                    saved.param.data = saved.local
        torch.clear_autocast_cache()
        self._earlier.clear()
        self._earlier |= {p: s for p, s in self._saved.items() if functional.on_host(s.weight)}
        self._copies.clear()  # last: only what is restored must not be restored again


def retry(restore: Callable[[], None], attempts: int = 5) -> None:
    """Restore, and again if that was interrupted: often is harmless, half is not."""
    try:
        restore()
    except BaseException:  # a second Ctrl-C, say
        if attempts > 1:
            retry(restore, attempts - 1)
        raise


def _saved(param: Tensor) -> Saved:
    shards = sharding.shard_groups(param)  # an unknown placement is refused before anything else
    local = sharding.local_part(param.detach())
    if local.layout != torch.strided or local.is_conj() or local.is_neg():
        raise RuntimeError(
            f"a parameter of shape {tuple(param.shape)} has the layout {local.layout} or is a "
            "lazy conjugate: only strided tensors can be perturbed, leave it out with select"
        )
    if not is_writable(local):
        raise RuntimeError(
            f"a parameter of shape {tuple(param.shape)} is expanded: its elements share memory"
        )
    return Saved(param, local, _as_real(local), None, shards, _memory(param))


@torch.inference_mode(False)
@torch.no_grad()
def _copy_unseen(weights: list[Tensor], values: list[Tensor]) -> None:
    """Copy without a trace in the versions by which autograd finds what it saved overwritten."""
    for weight, value in zip(weights, values, strict=True):
        with torch.autograd._unsafe_preserve_version_counter(weight):  # type: ignore[attr-defined]
            weight.copy_(value)
    torch.clear_autocast_cache()


def _memory(param: Tensor) -> tuple[object, ...]:
    """What tells two views of memory apart, on devices without addresses too."""
    local = param if type(param) in sharding.PLAIN else sharding.local_part(param.detach())
    place = local.data_ptr() or (local.untyped_storage()._cdata, local.storage_offset())
    return place, local.shape, local.stride(), local.dtype


def _as_real(tensor: Tensor) -> Tensor:
    """A dense real tensor with at least one dimension, which shares the memory of a strided one."""
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    return tensor if tensor.ndim else tensor.unsqueeze(0)
