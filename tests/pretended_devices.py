"""Real tensors that say they are on a device, so that a mixing of devices shows on any machine.

Inside ``PretendedDevice`` torch's meta device stands for a GPU: what is made there or moved there
has numbers all the same (on the CPU), and backward passes work. As on a GPU, an operation on
tensors of both places raises, unless the one on the host is a single number or an index; and
whoever reads a number on the host waits for the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

DEVICE = torch.device("meta")
aten = torch.ops.aten

_READS = (aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique2)
_COPIES = (aten._to_copy, aten.copy_)
_TAKE_INDICES = (aten.index, aten.index_put_, aten.index_put, aten._index_put_impl_)


class OnDevice(Tensor):
    """A tensor that is said to be on DEVICE. inner: the real one."""

    is_meta = False  # it has values

    @staticmethod
    def __new__(cls, inner: Tensor):
        return Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype,
            device=DEVICE,
        )  # fmt: skip

    def __init__(self, inner: Tensor):
        self.inner = inner

    def __repr__(self) -> str:
        return f"OnDevice({self.inner!r})"

    def tolist(self) -> list:
        """torch's own refuses subclasses."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} was called outside of PretendedDevice")


class PretendedDevice(TorchDispatchMode):
    """waits: what the host waited for, by operation.

    current: the one at work.
    """

    current: PretendedDevice | None = None

    def __init__(self):
        super().__init__()
        self.waits: list[str] = []
        self._numbers = _NumbersOnDevice()

    def __enter__(self):
        PretendedDevice.current = self
        self._numbers.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._numbers.__exit__(*error)
        PretendedDevice.current = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, packet = dict(kwargs or {}), func.overloadpacket
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        ours = [x for x in given if isinstance(x, OnDevice)]
        if any(x.is_meta for x in given if not isinstance(x, OnDevice)):
            raise RuntimeError(f"{func} takes a tensor that never had numbers")
        target = kwargs.get("device")
        if target is not None and target.type == DEVICE.type:
            kwargs["device"] = torch.device("cpu")
        on_device = bool(ours) if target is None else target.type == DEVICE.type
        if packet in _COPIES:
            on_device = self._copy(func, args, kwargs, bool(ours), on_device)
        else:
            _check_places(func, packet, given, ours)
            if ours and packet in _READS:
                self.waits.append(str(func))
        inner_args, inner_kwargs = tree_map(_inner, (args, kwargs))
        out = func(*inner_args, **inner_kwargs)
        known = {id(x.inner): x for x in ours}
        return tree_map(lambda x: _outer(x, known, on_device), out)

    def _copy(self, func, args, kwargs, from_device: bool, to_device: bool) -> bool:
        """Whether the result is on the device. Notes a wait where the host must wait."""
        if func.overloadpacket is aten.copy_:
            to_device, from_device = (isinstance(x, OnDevice) for x in args[:2])
        waits = not (kwargs.get("non_blocking") or args[2:3] == (True,))
        if from_device != to_device and (waits or from_device):
            self.waits.append(f"{func} {'to' if to_device else 'from'} the device")
        return to_device


class _NumbersOnDevice(TorchFunctionMode):
    """torch moves numbers and lists of indices there where no dispatch mode sees it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is Tensor.new_tensor:
            kwargs = {"dtype": args[0].dtype, "device": args[0].device, **kwargs}
            func, args = torch.tensor, args[1:]
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], OnDevice):
            args = (args[0], tree_map_only(list, _to_device, args[1], _is_list), *args[2:])
        device = kwargs.get("device")
        if func is torch.tensor and device is not None and torch.device(device) == DEVICE:
            return func(*args, **kwargs | {"device": "cpu"}).to(DEVICE)
        return func(*args, **kwargs)


def _check_places(func, packet, given: list[Tensor], ours: list[Tensor]) -> None:
    allowed = packet in _TAKE_INDICES
    strangers = [
        x for x in given
        if not isinstance(x, OnDevice) and x.ndim and not (allowed and not x.is_floating_point())
    ]  # fmt: skip
    if ours and strangers:
        shapes = ", ".join(str(tuple(x.shape)) for x in strangers)
        raise RuntimeError(f"{func} mixes devices: on the host are tensors of {shapes}")


def _is_list(x: Any) -> bool:
    return isinstance(x, list)


def _to_device(indices: list) -> Tensor:
    return torch.tensor(indices).to(DEVICE)


def _inner(x: Any) -> Any:
    return x.inner if isinstance(x, OnDevice) else x


def _outer(x: Any, known: dict[int, OnDevice], on_device: bool) -> Any:
    if not isinstance(x, Tensor):
        return x
    if id(x) in known:  # changed in place
        return known[id(x)]
    return OnDevice(x) if on_device else x


def to_device(network: nn.Module) -> None:
    """Moves a network's weights, in place; inside a PretendedDevice."""
    network.to(DEVICE)
