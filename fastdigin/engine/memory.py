"""Memory: what a budget like "12GiB" means, what is free, and what a function needs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from fastdigin.engine.live_bytes import LiveBytes
from fastdigin.errors import UserError

SHARE_OF_FREE = 0.7
"""Of what is free, "auto" takes this much: other programs, and the allocator's waste, need some."""

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def parse_memory(memory: str | int, device: torch.device) -> int:
    """Bytes of a budget: a number of bytes, "12GiB", "500MB", or "auto" for most of what is free.

    Raises UserError for anything else.
    """
    if memory == "auto":
        return int(SHARE_OF_FREE * free_memory(device))
    found = re.fullmatch(r"\s*([\d.]+)\s*([KMG]I?)?B?\s*", str(memory).upper())
    try:
        size = int(float(found[1]) * _UNITS[found[2] or ""])
    except (TypeError, ValueError):
        size = 0
    if size <= 0:
        raise UserError(f"memory must be 'auto' or a size like '12GiB' or '500MB', got {memory!r}")
    return size


def show_bytes(size: float) -> str:
    """A size for people: "1.46 GiB"."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size / 2**10:.0f} KiB"


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take on the device.

    CPU: the smaller of what the system calls available and what the process's control groups
    (containers, batch systems) leave. CUDA: what is free, and what torch holds but does not use.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return min([psutil.virtual_memory().available, *_cgroup_rests()])


def measure(function: Callable[[], object], device: torch.device) -> tuple[int, int]:
    """(bytes held by the result of ``function``, most bytes alive while it ran)."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = function()
        held = torch.cuda.memory_allocated(device) - before
        peak = torch.cuda.max_memory_allocated(device) - before
    else:
        with LiveBytes() as live:
            result = function()
            held, peak = live.now, live.peak
    del result
    return held, peak


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch (on CUDA or on the CPU) or Python could not get memory."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def release(device: torch.device) -> None:
    """Gives what torch holds but does not use back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


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
