"""What the launchers of Triton kernels share: strides, tuning, and what a device can run."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
from collections.abc import Callable, Sequence

import torch
import triton
from torch import Tensor

from fastdigin_kernels.common import choices, devices

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # kernels run on the CPU, to be tested


def unsupported(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str | None:
    """Why Triton kernels cannot run on this device and dtype, or None if they can."""
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"it takes float16, bfloat16 and float32, not {dtype}"
    if INTERPRETED:
        if dtype == torch.bfloat16:
            return "Triton's interpreter multiplies bfloat16 wrongly"
        return None if device.type == "cpu" else f"the interpreter runs on the CPU, not on {device}"
    if devices.kind_of(device) != "cuda":
        return f"it runs on CUDA devices, not on {device}"
    if devices.pretended() is None and not torch.cuda.is_available():
        return "torch finds no CUDA device"
    if torch.version.hip is not None:
        return "its tiles are chosen for NVIDIA's GPUs"
    major, minor = devices.device_of(device).capability
    if major < 8:
        return f"it needs a GPU of compute capability 8.0 or newer, not {major}.{minor}"
    return None


def family(device: torch.device) -> str:
    """Whose tiles to use: sm_80, sm_89, sm_90 or sm_100."""
    return "sm_80" if INTERPRETED else devices.device_of(device).family


def on(tensor: Tensor):
    """Makes the tensor's GPU the current one, where there is a GPU."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


_LONGEST_ROW = 2**23  # elements; a tile has at most 128 rows, and its offsets 32 bits


def readable(tensor: Tensor) -> Tensor:
    """The tensor itself if its rows are contiguous and not too far apart, else a copy."""
    contiguous = tensor.stride(-1) == 1 or tensor.shape[-1] == 1
    near = tensor.stride(-2) <= _LONGEST_ROW or tensor.shape[-2] == 1
    return tensor if contiguous and near else tensor.contiguous()


def alignment(*tensors: Tensor) -> int:
    """Elements that every row start is a multiple of: a power of two, at most 16 bytes' worth."""
    steps = [step for tensor in tensors for step in _strides(tensor)]
    return math.gcd(16 // tensors[0].element_size(), *steps)


def strides(align: int, *tensors: Tensor) -> list[int]:
    """Strides of all dimensions but the last, one tensor after the other, in units of ``align``."""
    return [step // align for tensor in tensors for step in _strides(tensor)]


def _strides(tensor: Tensor) -> list[int]:
    """A dimension of one element is never stepped along, whatever its stride is."""
    pairs = zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True)
    return [step if length > 1 else 0 for length, step in pairs]


def fastest(key: Sequence, candidates: Sequence, run: Callable, device: torch.device):
    """The candidate that ``run`` is fastest with; timed once per key and device, kept on disk.

    Being kept, it stays the same from one process to the next: another tile adds up in another
    order. Where algorithms must be deterministic it is the first one on every machine; and while a
    CUDA graph is recorded, in which nothing can be timed.
    """
    if len(candidates) == 1 or INTERPRETED or torch.are_deterministic_algorithms_enabled():
        return candidates[0]
    names = {str(candidate): candidate for candidate in candidates}
    key = (" ".join(map(str, key)), str(device))

    def decide() -> str:
        milliseconds = {
            name: triton.testing.do_bench(functools.partial(run, candidate), rep=20)
            for name, candidate in names.items()
        }
        _log.info("%s on %s: %s ms", *key, milliseconds)
        return min(milliseconds, key=milliseconds.get)

    if key not in _chosen:
        if torch.cuda.is_current_stream_capturing():
            return candidates[0]
        _chosen[key] = choices.remembered("triton_tiles", device, key[0], names, decide)
    return names[_chosen[key]]


_log = logging.getLogger(__name__)
_chosen: dict[tuple[str, str], str] = {}
