"""How many bytes of tensors are alive, now and at most, while some code runs."""

from __future__ import annotations

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """A context that counts the storages created inside it: ``now`` and ``peak``, in bytes.

    A storage counts once and whole, whatever its views, until nobody holds it any more; so what
    autograd saves for a backward counts. Tensors that existed before do not, nor does scratch
    memory inside an operation. Works on real tensors and, needing no memory, on fake ones.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for tensor in _tensors((args, kwargs)):
            self._meet(tensor, created=False)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._meet(tensor, created=True)
        return result

    def _meet(self, tensor: torch.Tensor, created: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            size = storage.nbytes() if created else 0
            self._known[key] = size
            weakref.finalize(storage, self._forget, key)
            self.now += size
            self.peak = max(self.peak, self.now)

    def _forget(self, key: int) -> None:
        self.now -= self._known.pop(key)


def _tensors(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
