"""Tensors spread over processes (DTensor, as FSDP2 makes them): the part that lies here.

A norm of the local part is the shard's, not the layer's: the squares are summed over the mesh
dimensions that shard, for all layers in one collective per dimension. Replicas are not summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed
from torch import Tensor, nn

if TYPE_CHECKING:  # torch can be built without it
    from torch.distributed import ProcessGroup

Groups = tuple["ProcessGroup", ...]
"""The process groups over which the parts of a tensor lie; none for a whole tensor."""


PLAIN = (Tensor, nn.Parameter)
"""torch's own tensors, of no class that gives operations another meaning."""


def is_sharded(tensor: Tensor) -> TypeGuard[Any]:
    """Whether this is a DTensor; asked without importing the module that defines it."""
    return type(tensor) not in PLAIN and hasattr(tensor, "device_mesh")


def local_part(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that lies in this process, sharing its memory."""
    part: Tensor = tensor.to_local() if is_sharded(tensor) else tensor
    return part


def part_placed_like(direction: Tensor, tensor: Any) -> Tensor:
    """Return the part here of a direction, after it is spread exactly as `tensor` is."""
    if is_sharded(direction) and direction.placements != tensor.placements:
        direction = direction.redistribute(placements=tensor.placements)
    return local_part(direction)


def shard_groups(tensor: Tensor) -> Groups:
    """Return the process groups that share a tensor.

    Raises:
        RuntimeError: it is neither replicated nor sharded in a way that is known.
    """
    if not is_sharded(tensor):
        return ()
    from torch.distributed.tensor.placement_types import Shard, _StridedShard

    mesh, placements = tensor.device_mesh, tensor.placements
    groups = []
    for dim, placement in enumerate(placements):
        if isinstance(placement, (Shard, _StridedShard)):
            groups.append(mesh.get_group(dim))
        elif not placement.is_replicate():
            raise RuntimeError(
                f"a parameter of shape {tuple(tensor.shape)} is placed as {placement}, whose norm "
                "cannot be taken: parameters must be sharded or replicated"
            )
    return tuple(groups)


def whole_norms(norms_here: Sequence[Tensor], groups: Sequence[Groups]) -> list[Tensor]:
    """Return the norms of whole tensors from those of the parts that lie here.

    Args:
        norms_here: norms of lists of tensors, of shape `[L]` each.
        groups: for each list, over which process groups its tensors are spread.

    Returns:
        Norms of the same shapes. Lists spread over the same groups share their collectives, one
        for each group.
    """
    found = list(norms_here)
    for spread in dict.fromkeys(of_list for of_list in groups if of_list):
        mine = [i for i, of_list in enumerate(groups) if of_list == spread]
        squares = torch.cat([found[i].double() for i in mine]).square()
        for group in spread:
            torch.distributed.all_reduce(squares, group=group)
        parts = torch.split(squares.sqrt(), [len(found[i]) for i in mine])
        for i, part in zip(mine, parts, strict=True):
            found[i] = part.to(found[i].dtype)
    return found


def any_nonzero(tensor: Tensor) -> bool:
    """Whether a tensor holds anything but zeros; all processes that have a part must ask."""
    total: Any = tensor.abs().sum()
    return bool(total.full_tensor() if is_sharded(total) else total)


def part_like(whole: Tensor, tensor: Tensor) -> Tensor:
    """Return of `whole` what lies in this process if it is spread like `tensor`."""
    if not is_sharded(tensor):
        return whole
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh, placements = tensor.device_mesh, tensor.placements
    sizes, offsets = compute_local_shape_and_global_offset(whole.shape, mesh, placements)
    for dim, (size, offset) in enumerate(zip(sizes, offsets, strict=True)):
        whole = whole.narrow(dim, min(offset, whole.shape[dim]), size)
    return whole.clone()  # a view would keep the whole alive, one for every tensor
