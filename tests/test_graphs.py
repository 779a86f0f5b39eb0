"""A step whose operations are recorded and run again without Python, as a CUDA graph runs them.

No GPU is needed: the way that an accelerator takes through the library is taken on the host, in the
same memory, so what a graph would keep from its recording (a value of the host, a tensor that was
there by chance) shows in the results.
"""

import copy

import pytest
import torch
from on_device import MODES, sgd, step_by_loop
from reference import batch, same_bits, small_net
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import torch_awp.functional
import torch_awp.optimizer
import torch_awp.random


class Graph(TorchDispatchMode):
    """Records operations; `replay` runs them again and writes to the memory of the first run."""

    def __init__(self) -> None:
        super().__init__()
        self._operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "a value was read"
        result = func(*args, **(kwargs or {}))
        self._operations.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, first in self._operations:
            again = func(*args, **kwargs)
            for old, new in zip(_tensors(first), _tensors(again), strict=True):
                if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@pytest.fixture
def _as_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (torch_awp.functional, torch_awp.optimizer, torch_awp.random):
        monkeypatch.setattr(module, "on_host", lambda _: False)


@pytest.mark.usefixtures("_as_on_an_accelerator")
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "update"])
def test_a_whole_step_can_be_recorded_and_run_again(mode):
    model, data = small_net(torch.float32), batch(torch.float32)
    twin = copy.deepcopy(model)
    optimizer, expected = (MODES[mode](sgd(net)) for net in (model, twin))
    for _ in range(2):  # after which nothing is made once
        step_by_loop(optimizer, model, data)
    graph = Graph()
    with graph:
        step_by_loop(optimizer, model, data)
    for _ in range(3):
        graph.replay()
    for _ in range(6):
        step_by_loop(expected, twin, data)
    assert same_bits(list(model.parameters()), list(twin.parameters()))


@pytest.mark.parametrize("mode", MODES)
def test_gradients_from_a_replay_are_no_cause_for_a_warning(mode):
    """It leaves no trace in their versions; `meta` stands for the accelerator."""
    param = nn.Parameter(torch.ones(4, 4, device="meta"))
    param.grad = torch.ones_like(param)
    optimizer = MODES[mode](torch.optim.SGD([param], lr=0.1))
    for _ in range(3):
        for _ in optimizer.passes():
            pass
        optimizer.step()
        optimizer.step(lambda: None)
