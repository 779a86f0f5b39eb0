"""Tensors spread over processes (DTensor, as FSDP2 makes them): the part that lies here.

A norm of the local part is the shard's, not the layer's: the squares are summed over the mesh
dimensions that shard, for all layers in one collective per dimension. Replicas are not summed.
"""

import torch
import torch.distributed
from torch import Tensor
from torch.distributed import ProcessGroup

from torch_awp.perturbation import frobenius_norms


def is_sharded(tensor: Tensor) -> bool:
    """Whether this is a DTensor; asked without importing the module that defines it."""
    return hasattr(tensor, "device_mesh")


def local_part(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that lies in this process, sharing its memory."""
    if is_sharded(tensor):
        local: Tensor = tensor.to_local()  # type: ignore[attr-defined]
        return local
    return tensor


def shard_groups(tensor: Tensor) -> tuple[ProcessGroup, ...]:
    """Return the process groups over which the parts of a tensor lie; none for a whole tensor."""
    if not is_sharded(tensor):
        return ()
    mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    return tuple(
        mesh.get_group(dim) for dim, placement in enumerate(placements) if placement.is_shard()
    )


def whole_norms(tensors: list[Tensor], groups: tuple[ProcessGroup, ...]) -> Tensor:
    """Return the norms ``[L]`` of the tensors whose parts here are ``tensors``."""
    norms = frobenius_norms(tensors)
    if not groups:
        return norms
    squares = norms.square()
    for group in groups:
        torch.distributed.all_reduce(squares, group=group)
    return squares.sqrt()


def part_like(whole: Tensor, tensor: Tensor) -> Tensor:
    """Return of ``whole`` what lies in this process if it is spread like ``tensor``."""
    if not is_sharded(tensor):
        return whole
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    sizes, offsets = compute_local_shape_and_global_offset(whole.shape, mesh, placements)
    for dim, (size, offset) in enumerate(zip(sizes, offsets, strict=True)):
        whole = whole.narrow(dim, min(offset, whole.shape[dim]), size)
    return whole
