"""Arithmetic and saved bytes of whatever runs in a ``with``; fake tensors count as real ones do."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

KINDS = ("convolution", "linear", "attention")


class FlopCounter(TorchDispatchMode):
    """Floating-point operations by kind, two per multiply-add, by torch's registered formulas.

    (torch's own FlopCounterMode hooks modules, which breaks under gradient checkpointing.) flops:
    one count for each of KINDS; linear is every matrix product outside of fused attention.
    Operations without a formula count nothing.
    """

    def __init__(self):
        super().__init__()
        self.flops = dict.fromkeys(KINDS, 0)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        found = flops_of(func, args, kwargs or {}, out)
        if found is not None:
            self.flops[found[0]] += found[1]
        return out


def flops_of(func, args, kwargs, out) -> tuple[str, int] | None:
    """(one of KINDS, count) of a call of an operation; None where it has no formula."""
    formula = _FORMULAS.get(func._overloadpacket) or flop_registry.get(func._overloadpacket)
    if formula is None:
        return None
    return _kind(func._overloadpacket.__name__), formula(*args, **kwargs, out_val=out)


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts what autograd saves for a backward.

    total: after the ``with``, the bytes of the distinct storages, without those of ``known``
    (weights).
    """

    def __init__(self, known: Iterable[Tensor] = ()):
        super().__init__(self._pack, lambda tensor: tensor)
        self.total = 0
        self._known = {_key(tensor) for tensor in known}
        self._storages: dict[int, torch.UntypedStorage] = {}  # alive, so that no key comes twice

    def __exit__(self, *error):
        super().__exit__(*error)
        self.total = sum(storage.nbytes() for storage in self._storages.values())
        self._storages.clear()  # or the backward could not free them

    def _pack(self, tensor: Tensor) -> Tensor:
        if _key(tensor) not in self._known:
            self._storages[_key(tensor)] = tensor.untyped_storage()
        return tensor


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _attention_flops(q_bhnd: Tensor, k_bhld: Tensor, v_bhld: Tensor, *args, **kwargs) -> int:
    return 4 * q_bhnd.numel() * k_bhld.shape[2]


def _attention_backward_flops(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *a, **kwargs) -> int:
    return 5 * _attention_flops(q, k, v) // 2  # Q K^T again, and two products each for both


# The CPU's fused attention, which torch's registry lacks. It saves what CUDA's does (Q, K, V, the
# output and its log-sum-exp), so it may stand in for that.
_FORMULAS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


def _kind(operation: str) -> str:
    """Which of KINDS an operation such as "convolution_backward" is."""
    if "attention" in operation:
        return "attention"
    if "conv" in operation:
        return "convolution"
    if operation in ("mm", "addmm", "bmm", "baddbmm"):
        return "linear"
    raise ValueError(f"{operation} has a flop formula, but is none of {', '.join(KINDS)}")
