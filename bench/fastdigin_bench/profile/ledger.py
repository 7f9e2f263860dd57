"""Counts every operation on its way: products, bytes, kernels, launches, layout copies, waits."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastdigin.hardware import LiveBytes
from fastdigin_bench.counters import flops_of
from fastdigin_bench.profile.gpus import Rates

aten = torch.ops.aten

_COPIES = (aten.clone, aten._to_copy, aten.copy_)
_FREE = (
    aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided,
    aten._unsafe_view, aten._reshape_alias, aten.lift_fresh, aten.lift, aten.detach, aten.alias,
    aten.resize_, aten.set_, aten._fused_sdp_choice, aten.is_same_size,
)  # fmt: skip
"""No kernel runs: memory is taken, or looked at in another way."""
_ONLY_WRITTEN = (aten.copy_, aten.fill_, aten.zero_)
"""In place, without reading what was there."""


@dataclass
class Counts:
    """What some operations cost.

    flops: of products, by (kind, dtype); kind is a name of a rate. bytes: read and written by all
    other operations. kernels: launched on the device. launches: made by the host, a graph being
    one. layout_copies: between channels first and channels last, those inside a convolution
    included. waits: of the host for the device. calls, rows: of networks, by (name, kind of pass);
    rows are those of the batch.
    """

    flops: Counter = field(default_factory=Counter)
    bytes: int = 0
    kernels: int = 0
    launches: int = 0
    layout_copies: int = 0
    waits: int = 0
    calls: Counter = field(default_factory=Counter)
    rows: Counter = field(default_factory=Counter)

    def add(self, other: Counts, launched: bool = True) -> None:
        """launched: whether the host launched the other's kernels."""
        for name in ("flops", "calls", "rows"):
            getattr(self, name).update(getattr(other, name))
        self.bytes += other.bytes
        self.kernels += other.kernels
        self.launches += other.launches * launched
        self.layout_copies += other.layout_copies
        self.waits += other.waits

    def repeat(self, since: Counts, times: int) -> None:
        """Adds so many times what came to these counts since they were ``since``."""
        for name in ("flops", "calls", "rows"):
            mine, before = getattr(self, name), getattr(since, name)
            mine.update({key: times * (n - before[key]) for key, n in mine.items()})
        for name in ("bytes", "kernels", "launches", "layout_copies", "waits"):
            now = getattr(self, name)
            setattr(self, name, now + times * (now - getattr(since, name)))

    @property
    def tflop(self) -> float:
        return sum(self.flops.values()) / 1e12

    def seconds(self, rates: Rates) -> float:
        """By the fixed formula: no overlap, no time for launches."""
        products = sum(n / rates.of(*kind) for kind, n in self.flops.items())
        return products + self.bytes / (1e12 * rates.memory)


class Ledger(TorchDispatchMode):
    """Counts what runs inside it on fake tensors, for each (stage, part).

    A read by the host is a wait, and is answered by 0.5, 1 or True: whatever a job is judged by
    looks fine, and nothing ends sooner than it must. live: bytes of all tensors, now and at most.
    """

    def __init__(self, live: LiveBytes):
        super().__init__()
        self.live = live
        self.totals: dict[tuple[str, str], Counts] = {}
        self._stage, self._part = "preparation", "other"
        self._sinks: list[Counts] = []
        self._on_host: set[int] = set()
        self._in_graph = False

    @property
    def sink(self) -> Counts:
        """Where operations are counted now."""
        if self._sinks:
            return self._sinks[-1]
        return self.totals.setdefault((self._stage, self._part), Counts())

    @contextmanager
    def into(self, counts: Counts) -> Iterator[None]:
        """Counts go there meanwhile, with their launches by the host."""
        before, self._in_graph = self._in_graph, False
        self._sinks.append(counts)
        try:
            yield
        finally:
            self._sinks.pop()
            self._in_graph = before

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Names the stage, unless it is a part of one that is named already."""
        before, self._stage = self._stage, name if self._stage == "preparation" else self._stage
        try:
            yield
        finally:
            self._stage = before

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        before, self._part = self._part, name
        try:
            yield
        finally:
            self._part = before

    @contextmanager
    def one_launch(self) -> Iterator[None]:
        """All that is counted meanwhile was launched at once: a graph."""
        before, self._in_graph = self._in_graph, True
        self.sink.launches += not before
        try:
            yield
        finally:
            self._in_graph = before

    def note(self, counts: Counts) -> None:
        """Counts what cost as much as that."""
        self.sink.add(counts, launched=not self._in_graph)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet is aten._local_scalar_dense:
            return self._read(func, args[0])
        out = func(*args, **kwargs)
        if packet is aten.lift_fresh:  # torch.tensor of numbers
            self._note_on_host(out)
        if not (packet in _FREE or func.is_view or func.namespace == "prim"):
            self._count(func, args, kwargs, out)
        return out

    def seconds(self, rates: Rates) -> float:
        """Of all that was counted."""
        return sum(counts.seconds(rates) for counts in self.totals.values())

    def read_list(self, tensor: Tensor) -> list:
        """What ``tensor.tolist()`` gives, with one wait."""
        self.sink.waits += 1
        rows = [0.5 if tensor.is_floating_point() else 1] * tensor.numel()
        for size in reversed(tensor.shape[1:]):
            rows = [rows[i : i + size] for i in range(0, len(rows), size)]
        return rows

    def _note_on_host(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._on_host.add(storage._cdata)
        weakref.finalize(storage, self._on_host.discard, storage._cdata)

    def _read(self, func, tensor: Tensor) -> object:
        if isinstance(tensor, FakeTensor) and tensor.constant is None:
            self.sink.waits += tensor.untyped_storage()._cdata not in self._on_host
            if tensor.dtype is torch.bool:
                return True
            return 0.5 if tensor.is_floating_point() else 1
        return func(tensor)  # a number that never left the host

    def _count(self, func, args, kwargs, out) -> None:
        sink, packet = self.sink, func.overloadpacket
        self._launch()
        found = flops_of(func, args, kwargs, out)
        if found is not None:
            kind, flops = found
            name = packet.__name__
            if kind == "attention" and ("backward" in name or "gradient" in name):
                kind = "attention_backward"
            sink.flops[kind, args[0].dtype] += flops
            if packet in (aten.convolution, aten.convolution_backward):
                self._count_hidden_copies(packet, args)
            return
        read = _tensors((args[1:] if packet in _ONLY_WRITTEN else args, kwargs))
        written = _tensors(out)
        sink.bytes += sum(map(_bytes, read)) + sum(map(_bytes, written))
        if packet in _COPIES and _changes_layout(read[-1], written[0]):
            sink.layout_copies += 1

    def _launch(self) -> None:
        self.sink.kernels += 1
        self.sink.launches += not self._in_graph

    def _count_hidden_copies(self, packet, args) -> None:
        """cuDNN copies an operand that is not dense in the weight's layout, channels last."""
        images = args[:1] if packet is aten.convolution else args[:2]
        weight = args[1 if packet is aten.convolution else 2]
        if not _is_channels_last(weight):
            return
        for x in images:
            if not x.is_contiguous(memory_format=torch.channels_last):
                self._launch()
                self.sink.bytes += 2 * _bytes(x)
                self.sink.layout_copies += x.stride(1) != 1  # a slice of channels has the layout


def _tensors(tree) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bytes(x: Tensor) -> int:
    """Of its different numbers: what was expanded is read once."""
    count = 1
    for size, stride in zip(x.shape, x.stride(), strict=True):
        count *= size if stride else min(size, 1)
    return count * x.element_size()


def _is_channels_last(x: Tensor) -> bool:
    """And not contiguous at the same time."""
    return (
        x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    )


def _changes_layout(source: Tensor, target: Tensor) -> bool:
    if source.ndim != 4 or source.shape != target.shape:
        return False
    first, last = source.is_contiguous(), _is_channels_last(source)
    return (first and _is_channels_last(target)) or (last and target.is_contiguous())
