"""How ``fastdigin bench kernels`` measures: in turns, on pages that stay."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Mapping

import torch

_LEAST_ROUNDS, _MOST_ROUNDS = 3, 100
_SAMPLE_SECONDS = 2e-3  # calls are timed in bundles of at least this
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of malloc.h


def time_in_turns(
    runs: Mapping[str, Callable[[], object]], seconds: float, device: torch.device
) -> dict[str, list[float]]:
    """Seconds a call, of every round; in a round each takes its turn."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def sample(run, calls: int) -> float:
        synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            run()
        synchronize()
        return (time.perf_counter() - start) / calls

    once = {}
    for name, run in runs.items():  # the first call may tune or compile
        run()
        once[name] = sample(run, 1)
    calls = {name: max(1, round(_SAMPLE_SECONDS / taken)) for name, taken in once.items()}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    start = time.perf_counter()
    for done in range(_MOST_ROUNDS):
        if done >= _LEAST_ROUNDS and time.perf_counter() - start > seconds:
            break
        for name, run in runs.items():
            samples[name].append(sample(run, calls[name]))
    return samples


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of torch's own matrix product, the best of some sizes."""
    best = 0.0
    for size in (512, 1024, 2048) if device.type == "cpu" else (4096, 8192):
        a, b = torch.randn(2, size, size, device=device).to(dtype)
        taken = time_in_turns({"": lambda a=a, b=b: a @ b}, 0.3, device)[""]
        best = max(best, 2 * size**3 / min(taken))
    return best


def keep_pages() -> None:
    """Has glibc give no memory back to the system.

    Else, by the luck of the heap, a call may take as long again to get its pages anew.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, -1)
        mallopt(_MMAP_MAX, 0)
