"""The weights at `w + v`: a backup of each `w`, the moves, and how they are restored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
    kind: tuple[object, ...]  # device, dtype and strides, of which one copy takes one kind
    version: int = 0  # of the weight, as we left it
    path: float = 0.0  # length of its moves so far, relative to the weight's norm

    def is_in_place(self) -> bool:
        """Whether the parameter still has the memory that it had."""
        return _memory(self.param) == self.memory

    def put_back(self) -> None:
        """Give the parameter its own memory again."""
        if sharding.is_sharded(self.param):
            sharding.local_part(self.param.detach()).copy_(self.local)
        else:
            self.param.data = self.local


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
        sizes: dtype, gamma and step size of the moves that were made.
    """

    _copies: Any = ()  # of one that torch.compile makes, without __init__

    def __init__(
        self,
        constraint: str = "layer",
        epsilon: float = 0.0,
        earlier: dict[Tensor, Saved] | None = None,
    ) -> None:
        self.constraint, self.epsilon = constraint, epsilon
        self.overwritten: list[Tensor] = []
        self.sizes: dict[tuple[torch.dtype, float, float], None] = {}  # in order
        self._earlier = {} if earlier is None else earlier
        self._saved: dict[Tensor, Saved] = {}
        self._copies = []  # what restoring copies back
        self._norms: dict[tuple[int, ...], Tensor] = {}

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
        params, found = list(params), []
        try:
            self._save(params)
            for moves in portions:
                if moves:
                    found.append(self._move(moves))
                del moves  # so that the next portion can take its memory
        except (NotImplementedError, TypeError) as error:
            _name_class(params, error)
            raise
        for saved in self._saved.values():
            saved.version = saved.weight._version
        torch.clear_autocast_cache()
        return any(found) or not found

    def _move(self, moves: Sequence[Move]) -> bool:
        """Compute `v <- project(v + step_size * W * d / ||d||)`."""
        groups = self._grouped(moves)
        # The norms of all at once, since those of sharded tensors cost a collective.
        norms = sharding.whole_norms(
            [
                of_list
                for _, backups, directions in groups.values()
                for of_list in (self._norms_of(backups), functional.norms(directions))
            ],
            [shards for *_, shards in groups for _ in range(2)],
        )
        for i, (kind, (weights, backups, directions)) in enumerate(groups.items()):
            *_, gamma, step_size, path, shards = kind
            self.sizes[weights[0].dtype, gamma, abs(step_size)] = None
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
        new = {}
        for param in params:
            saved = self._saved.get(param)
            if saved is None:
                saved = self._earlier.get(param)
                if saved is None or not saved.is_in_place():
                    saved = _saved(param)
                if saved.backup is None:
                    saved.backup = torch.empty_like(saved.weight)
                new[param] = saved
            elif not saved.is_in_place():
                raise RuntimeError(
                    f"a parameter of shape {tuple(saved.local.shape)} was given other memory while "
                    "it was perturbed: it cannot be perturbed further"
                )
        alike: dict[object, list[Saved]] = {}
        for saved in new.values():
            alike.setdefault(saved.kind, []).append(saved)
        for some in alike.values():
            weights, backups = [saved.weight for saved in some], [saved.backup for saved in some]
            torch._foreach_copy_(backups, weights)
            self._copies.append((weights, backups))
        for saved in new.values():
            saved.version, saved.path = saved.weight._version, 0.0
        self._saved |= new  # not before: one that is in it has a backup

    def _grouped(self, moves: Sequence[Move]) -> dict[tuple[Any, ...], tuple[list[Tensor], ...]]:
        """Weights, backups and directions that one call can take: the key says what they share."""
        groups: dict[tuple[Any, ...], tuple[list[Tensor], ...]] = {}
        for param, direction, gamma, step_size in moves:
            saved = self._saved[param]
            if not sharding.is_plain(direction):
                direction = sharding.part_placed_like(direction, param)
            direction = _as_real(direction)
            saved.path += abs(step_size)
            # All processes must find the same groups, and strides of their parts may differ.
            both = saved.kind[:2], direction.dtype
            kind = (*both, gamma, step_size, saved.path, saved.shards)
            group = groups.get(kind) or groups.setdefault(kind, ([], [], []))
            group[0].append(saved.weight)
            group[1].append(saved.backup)
            group[2].append(direction)
        return groups

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Context in which the weights are at `w`, which a pending backward pass does not see."""
        perturbed = [[weight.detach().clone() for weight in some] for some, _ in self._copies]
        for weights, backups in reversed(self._copies):
            _copy_unseen(weights, backups)
        try:
            yield
        finally:
            for (weights, _), values in zip(self._copies, perturbed, strict=True):
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
        self._earlier.clear()
        self._earlier.update(
            {p: saved for p, saved in self._saved.items() if functional.on_host(saved.weight)}
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


def _saved(param: Tensor) -> Saved:
    shards = sharding.shard_groups(param)  # an unknown placement is refused before anything else
    local = _local(param)
    if local.layout != torch.strided or local.is_conj() or local.is_neg():
        raise RuntimeError(
            f"a parameter of shape {tuple(param.shape)} has the layout {local.layout} or is a "
            "lazy conjugate: only strided tensors can be perturbed, leave it out with select"
        )
    if not is_writable(local):
        raise RuntimeError(
            f"a parameter of shape {tuple(param.shape)} is expanded: its elements share memory"
        )
    weight = _as_real(local)
    backup = torch.empty_like(weight)
    kind = weight.device, weight.dtype, weight.stride() == backup.stride()
    return Saved(param, local, weight, backup, shards, _memory(param), kind)


def _local(param: Tensor) -> Tensor:
    return sharding.local_part(param.detach())


@torch.inference_mode(False)
@torch.no_grad()
def _copy_unseen(weights: list[Tensor], values: list[Tensor]) -> None:
    """Copy without a trace in the versions by which autograd finds what it saved overwritten."""
    with ExitStack() as versions:
        for weight in weights:
            versions.enter_context(torch.autograd._unsafe_preserve_version_counter(weight))  # type: ignore[attr-defined]
        torch._foreach_copy_(weights, values)
    torch.clear_autocast_cache()


def _name_class(params: list[Tensor], error: Exception) -> None:
    """Say where an operation is missing: in a class that is not torch's own."""
    for param in params:
        if not (sharding.is_plain(param) or sharding.is_sharded(param)):
            raise RuntimeError(
                f"a parameter of shape {tuple(param.shape)} is of class "
                f"{type(param).__name__}, which lacks an operation: leave it out with select"
            ) from error


def _memory(param: Tensor) -> tuple[object, ...]:
    """What tells two views of memory apart, on devices without addresses too."""
    tensor = param if sharding.is_plain(param) else _local(param)
    place = tensor.data_ptr() or (tensor.untyped_storage()._cdata, tensor.storage_offset())
    return place, tensor.shape, tensor.stride(), tensor.dtype


def _as_real(tensor: Tensor) -> Tensor:
    """A dense real tensor with at least one dimension, which shares the memory of a strided one."""
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    return tensor if tensor.ndim else tensor.unsqueeze(0)
