"""Memory: what a budget like "12GiB" means, and how running out of it looks."""

import re

import torch

from fastdigin import hardware
from fastdigin.errors import UserError

SHARE_OF_FREE = 0.7
"""Of what is free, "auto" takes this much: other programs, and the allocator's waste, need some."""

SHARE_OF_GPU = 0.9
"""Likewise of a GPU, which is usually one program's alone."""

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def parse_memory(memory: str | int, device: torch.device) -> int:
    """Bytes of a budget: a number of bytes, "12GiB", "500MB", or "auto" for most of what is free.

    Raises UserError for anything else.
    """
    if memory == "auto":
        where = hardware.of(device)
        return int((SHARE_OF_GPU if where.is_gpu else SHARE_OF_FREE) * where.free_memory())
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


_SIGNS = (
    "can't allocate memory", "CUDA error: out of memory",
    # cuBLAS fails to make its handle or workspace, cuDNN to find an algorithm that fits.
    "CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED", "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
)  # fmt: skip


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether torch (on CUDA or on the CPU), a library of CUDA's or Python could not get memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    text = str(error)
    # Without enough memory cuDNN may also say that it supports nothing of the kind.
    unsupported = "CUDNN_STATUS_NOT_SUPPORTED" in text and "memory" in text
    return unsupported or any(sign in text for sign in _SIGNS)
