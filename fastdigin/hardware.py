"""All that is asked of a device, in one place, so that tests and benches can pretend another one.

``of(device)`` answers for a CPU or a CUDA device. Inside ``with pretend(hardware)`` it returns
``hardware`` for every device: a subclass of :class:`Hardware` that calls itself a GPU makes the
engine run on CPU tensors, fake ones too, as it would run there.
"""

from __future__ import annotations

import gc
import os
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastdigin.errors import UserError

WARM_UP = 2
CROWD = 16
"""Processes for each core or GPU, at most: more only wait for each other, and fill the memory."""
PIECES = 2**30  # bytes that torch holds but cannot use: worth a word
_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


class Hardware:
    """A CPU, and what subclasses have in common with one.

    is_gpu: whether many rows at once pay, launches cost, and reading a value waits. has_graphs:
    whether ``record`` gives what replays in one launch. capability: CUDA's (major, minor); None
    elsewhere. advice: what helps where memory runs out; "" where nothing does.
    """

    is_gpu = has_graphs = False
    capability: tuple[int, int] | None = None
    advice = ""

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = torch.device(device)

    @property
    def name(self) -> str:
        """What people call the device: "NVIDIA H100 80GB HBM3", or "cpu"."""
        return self.device.type

    def free_memory(self) -> int:
        """Bytes that this process may still take: the least that system and containers leave."""
        return min([psutil.virtual_memory().available, *_cgroup_rests()])

    def release(self) -> None:
        """Gives what torch holds but does not use back to the device."""

    def seconds(self) -> float:
        """A clock that waits until the device has done its work."""
        return time.perf_counter()

    def count_bytes(self) -> LiveBytes | AllocatedBytes:
        """A context that counts the bytes that are alive, ``now`` and at most (``peak``)."""
        return LiveBytes()

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy in the host's memory, pinned where the device copies faster from there."""
        return tensor.cpu()

    def new_pool(self) -> object:
        """Memory for ``record``. Of its recordings a later one may lie in what an earlier one left
        free, and whoever replays the earlier one then overwrites it."""

    def record(
        self, run: Callable[[], None], forget: Callable[[], None], pool: object
    ) -> Callable[[], None]:
        """What repeats ``run``, with the tensors that it read and wrote when it was recorded.

        forget: drops what ``run`` has left behind. pool: of ``new_pool``, with a recording alive
        or never used before.
        """
        return run


class Cuda(Hardware):
    """A CUDA device."""

    is_gpu = has_graphs = True

    @property
    def capability(self) -> tuple[int, int]:
        return torch.cuda.get_device_capability(self.device)

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.device)

    def free_memory(self) -> int:
        """Bytes: what is free when torch has given back what it can. Graphs keep their pools."""
        self.release()
        return torch.cuda.mem_get_info(self.device)[0]

    @property
    def advice(self) -> str:
        reserved, used = torch.cuda.memory_reserved(self.device), self._used()
        settings = [os.environ.get(f"PYTORCH_{name}ALLOC_CONF", "") for name in ("", "CUDA_")]
        if reserved - used < PIECES or any("expandable_segments" in each for each in settings):
            return ""
        return (
            f"{(reserved - used) / 2**30:.1f} GiB are free in pieces: "
            "PYTORCH_ALLOC_CONF=expandable_segments:True lets torch join them"
        )

    def _used(self) -> int:
        return torch.cuda.memory_allocated(self.device)

    def release(self) -> None:
        gc.collect()  # an engine that is gone may still hold its graphs
        torch.cuda.empty_cache()

    def seconds(self) -> float:
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def count_bytes(self) -> AllocatedBytes:
        return AllocatedBytes(self.device)

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor)

    def new_pool(self) -> object:
        return torch.cuda.graph_pool_handle()

    def record(
        self, run: Callable[[], None], forget: Callable[[], None], pool: object
    ) -> Callable[[], None]:
        with torch.cuda.device(self.device):
            current, aside = torch.cuda.current_stream(), _stream_aside(self.device)
            aside.wait_stream(current)
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP):  # choices are made and workspaces found outside
                    run()
                forget()  # or both would be alive: memory that was taken here does not serve there
            current.wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            # Other threads may go on with what cannot be recorded.
            with torch.cuda.graph(graph, pool, aside, capture_error_mode="thread_local"):
                run()
        return graph.replay


@cache
def _stream_aside(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings: libraries keep a workspace for each, which must lie in no pool, and
    what one recording left free only serves others of its stream."""
    return torch.cuda.Stream(device)


_pretended: Hardware | None = None


def of(device: torch.device | str) -> Hardware:
    """What answers for a device; the pretended hardware where there is one."""
    if _pretended is not None:
        return _pretended
    return (Cuda if torch.device(device).type == "cuda" else Hardware)(device)


@contextmanager
def pretend(hardware: Hardware) -> Iterator[Hardware]:
    """Inside, every device is ``hardware``."""
    global _pretended
    before, _pretended = _pretended, hardware
    try:
        yield hardware
    finally:
        _pretended = before


def default_device() -> torch.device:
    """Where models go that are told nothing: the process's GPU, or else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def measure(function: Callable[[], object], device: torch.device) -> tuple[int, int]:
    """(bytes held by the result of ``function``, most bytes alive while it ran)."""
    with of(device).count_bytes() as count:
        result = function()
        held, peak = count.now, count.peak
    del result
    return held, peak


class AllocatedBytes:
    """Bytes that torch's CUDA allocator has handed out since the context began."""

    def __init__(self, device: torch.device):
        self._device = device

    def __enter__(self) -> AllocatedBytes:
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        self._before = torch.cuda.memory_allocated(self._device)
        return self

    def __exit__(self, *_) -> None:
        pass

    @property
    def now(self) -> int:
        return torch.cuda.memory_allocated(self._device) - self._before

    @property
    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self._device) - self._before


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


def _cgroup_rests() -> list[int]:
    """What every enclosing control group, version 1 or 2, leaves."""
    try:
        lines = (_PROC / "self/cgroup").read_text().splitlines()
    except OSError:
        return []
    rests = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit, used = _CGROUP, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, limit, used = _CGROUP / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        # In a container the path may be the host's: the group's own files are then at the root.
        folder = root / path.lstrip("/")
        for each in (folder, *folder.parents):
            rest = _read_rest(each / limit, each / used)
            if rest is not None:
                rests.append(rest)
            if each == root:
                break
    return rests


def _read_rest(limit: Path, used: Path) -> int | None:
    try:
        most, now = limit.read_text().strip(), used.read_text().strip()
    except OSError:
        return None
    return None if most == "max" else max(int(most) - int(now), 0)


def check_workers(count: int, units: int) -> None:
    """UserError for more processes than so many cores or GPUs can serve."""
    if count > CROWD * units:
        raise UserError(
            f"workers must be at most {CROWD * units}, {CROWD} for each of {units} cores or GPUs, "
            f"got {count}"
        )
