"""How many kernels a CUDA device would start, counted on tensors of the `meta` device.

The rules are those of torch's sources (ForeachUtils.h, MultiTensorApply.cuh): a foreach operation
takes many tensors at a time only where corresponding ones agree in shape, strides and dtype
(`_foreach_copy_` may change the dtype); otherwise it starts a kernel for each tensor. One launch
has room for 110, 64, 48, 36 or 30 tensors by the number of lists, and for 320 blocks of 65,536
elements.
"""

from collections import Counter
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_TENSORS, _BLOCKS, _CHUNK = (110, 64, 48, 36, 30), 320, 65536
# What starts nothing on a device: other views, and memory.
_FREE = {
    *("view", "split", "split_with_sizes", "detach", "as_strided", "unsqueeze", "squeeze"),
    *("_unsafe_view", "expand", "alias", "select", "permute", "unbind", "slice", "t", "transpose"),
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "reshape"),
    *("view_as_real", "_reshape_alias", "_unsafe_index_none"),
}


def _multi_tensor(numels: list[int], lists: int) -> int:
    launches = tensors = blocks = 0
    for numel in numels:
        tensors += 1
        chunks = -(-numel // _CHUNK)
        for chunk in range(chunks):
            blocks += 1
            last = chunk == chunks - 1
            if (tensors == _TENSORS[lists - 1] and last) or blocks == _BLOCKS:
                launches, blocks, tensors = launches + 1, 0, 0 if last else 1
    return launches + (blocks > 0)


class Launches(TorchDispatchMode):
    """Counts kernels by the name of the operation that starts them."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return sum(self.by_name.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        name = func.overloadpacket.__name__
        lists = [a for a in args if isinstance(a, list | tuple) and a and isinstance(a[0], Tensor)]
        if name.startswith("_foreach"):
            self.by_name[name] += self._of_foreach(name, lists)
        elif name in ("stack", "cat"):
            self.by_name[name] += -(-len(lists[0]) // 128)
        elif name not in _FREE:
            self.by_name[name] += 1
        return func(*args, **(kwargs or {}))

    def _of_foreach(self, name: str, lists: list[list[Tensor]]) -> int:
        def layout(tensors: list[Tensor]) -> list[object]:
            dtypes = [None if name == "_foreach_copy_" else tensor.dtype for tensor in tensors]
            return [(t.shape, t.stride(), dtype) for t, dtype in zip(tensors, dtypes, strict=True)]

        numels = [tensor.numel() for tensor in lists[0]]
        if name == "_foreach_norm":  # one for zeros, one for each 512 results
            return 1 + _multi_tensor(numels, 1) - (-len(numels) // 512)
        if any(layout(tensors) != layout(lists[0]) for tensors in lists):
            return len(numels)
        return _multi_tensor(numels, len(lists) + (not name.endswith("_")))
