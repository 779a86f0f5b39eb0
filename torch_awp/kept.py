"""What a single-pass mode keeps of each tensor from one step to the next, in the base's state.

There every checkpoint looks for it, whoever writes it. Most optimizers make their state for a
tensor only where it has none, so nothing is put in before they have.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from torch_awp.functional import alike, clone_tensors, is_plain
from torch_awp.sharding import local_part, placed_like

State = Any  # a dictionary from tensors to dictionaries, and what some optimizers keep beside


@torch.inference_mode(False)
@torch.no_grad()
def copies_of(sources: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
    """Return dense copies of tensors that belong to parameters, placed like these."""
    copies: dict[Tensor, Tensor] = {}
    dense: dict[Tensor, Tensor] = {}
    for param, source in sources.items():
        if source.layout != torch.strided:
            source = source.to_dense()
        if is_plain(source):
            dense[param] = source
        else:
            copies[param] = torch.empty_like(param).copy_(placed_like(source, param))
    for own in alike(dense, lambda param: dense[param]):
        copies.update(zip(own, clone_tensors([dense[param] for param in own]), strict=True))
    return copies


@torch.no_grad()
def subtract_params_(copies: Mapping[Tensor, Tensor]) -> None:
    """Take from each copy the parameter it belongs to."""
    for pairs in alike(copies.items(), lambda pair: pair[1]):
        params = [local_part(param) for param, _ in pairs]
        torch._foreach_sub_([local_part(copy) for _, copy in pairs], params)


def kept(state: State, key: str, param: Tensor) -> Tensor | None:
    """Return what is kept of a parameter, unless it does not fit it (any more)."""
    values = state.get(param)
    value = values.get(key) if isinstance(values, dict) else None
    fits = isinstance(value, Tensor) and value.shape == param.shape
    return value if fits else None


def drop(state: State, keys: Iterable[str]) -> None:
    """Keep nothing of any parameter."""
    for values in state.values():
        if isinstance(values, dict):
            for key in keys:
                values.pop(key, None)


def keep(state: State, key: str, values: Mapping[Tensor, Tensor], params: list[Tensor]) -> None:
    """Keep exactly ``values``, of which some parameters may have none."""
    drop(state, [key])
    if not values:
        return
    own = [state[param] for param in params]  # checkpoints want entries of all or of none
    stateless = not any(own)
    for param, value in values.items():
        if state[param] is None:  # ZeroRedundancyOptimizer's sign for "in another process"
            state[param] = {key: value}
        # Where a hook took the gradient away the base still has to make its state.
        elif stateless or state[param] or param.grad is not None:
            state[param][key] = value


def save_kept(
    state: State, key: str, params: list[Tensor], state_dict: dict[str, Any], named: set[Tensor]
) -> dict[str, Any]:
    """Return a base's ``state_dict`` with what is kept now, whatever the base saves.

    Those of ``named`` have zeros where nothing is kept: distributed checkpoints are read into what
    a fresh optimizer has, and want every name of that.
    """
    own = _of_torch(state_dict)
    saved = dict(own["state"])
    stateless = not any(saved.values())
    for index, param in zip(_indices(own), params, strict=True):
        value, values = kept(state, key, param), saved.get(index) or {}
        if value is None and param in named and (values or stateless):
            value = torch.zeros_like(param, requires_grad=False)
        if value is not values.get(key):
            others = {name: v for name, v in values.items() if name != key}
            saved[index] = others if value is None else {**others, key: value}
    own["state"] = saved
    return state_dict


def load_kept(
    key: str, params: list[Tensor], state_dict: Mapping[str, Any]
) -> dict[Tensor, Tensor]:
    """Return copies of what a checkpoint kept, by parameter; read before the base changes it."""
    loaded = {}
    own = _of_torch(state_dict)
    for index, param in zip(_indices(own), params, strict=False):
        values = own["state"].get(index)
        value = values.get(key) if isinstance(values, dict) else None
        if isinstance(value, Tensor):
            loaded[param] = value.to(param.device, param.dtype, copy=True)
    return loaded


def _of_torch(state_dict: Mapping[str, Any]) -> Any:
    """The part in torch's format, also in what an optimizer around another saves (Lookahead)."""
    for part in (state_dict, *state_dict.values()):
        if isinstance(part, Mapping) and "param_groups" in part:
            return part
    raise ValueError(f"no parameter groups in an optimizer's state_dict of {list(state_dict)}")


def _indices(state_dict: Mapping[str, Any]) -> list[Any]:
    return [index for group in state_dict["param_groups"] for index in group["params"]]
