"""Memory for backups that outlives a step, where fresh memory costs more than the copy into it."""

from collections import Counter

import torch
from torch import Tensor

from torch_awp.perturbation import clone_tensors, on_host


class BackupMemory:
    """Makes copies of tensors in memory that earlier copies have left.

    The host's system hands memory out page by page, emptied, which takes two to three times as long
    as copying 100 MB. Accelerators' allocators keep what was freed themselves, so nothing is kept
    for those here.
    """

    def __init__(self) -> None:
        self._spare: dict[object, list[Tensor]] = {}
        self._lent: dict[object, list[Tensor]] = {}

    def copies(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return independent copies of tensors of one device, equal bit for bit."""
        if not on_host(tensors[0]):
            return clone_tensors(tensors)
        forms = [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors]
        if all(len(self._spare.get(form, ())) >= count for form, count in Counter(forms).items()):
            copies = [self._spare[form].pop() for form in forms]
            torch._foreach_copy_(copies, tensors)
        else:
            copies = clone_tensors(tensors)
        for form, copy in zip(forms, copies, strict=True):
            self._lent.setdefault(form, []).append(copy)
        return copies

    def take_back(self) -> None:
        """Keep the memory of the copies made since the last call for the next, and no other."""
        self._spare, self._lent = self._lent, {}
