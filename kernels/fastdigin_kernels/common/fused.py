"""Which implementation GroupNorm+SiLU and GEGLU take: PyTorch's operations, C++ or Triton.

``auto`` is C++ for float32 on the CPU where the library is built, and PyTorch elsewhere. Nothing is
timed: at all shapes of the embedded and the SD models the C++ kernels were as fast or faster
(bench/results/kernels.json), and the Triton ones have not been measured on a GPU.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from fastdigin_kernels.attention.operations import BackendError
from fastdigin_kernels.common import native

IMPLEMENTATIONS = ("auto", "torch", "cpp", "triton")


def choose(impl: str, x: Tensor) -> str:
    """The implementation that ``impl`` stands for. ValueError if there is none of that name."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}")
    if impl != "auto":
        return impl
    fits = x.device.type == "cpu" and x.dtype is torch.float32
    return "cpp" if fits and _library_is_built() else "torch"


@cache
def backend(operation: str, impl: str) -> ModuleType:
    """The module of an operation's C++ or Triton kernels. BackendError if it cannot be imported."""
    try:
        return import_module(f"fastdigin_kernels.{operation}.{impl}")
    except ImportError as error:
        raise BackendError(f"{operation} by {impl!r} cannot be used: {error}") from error


def checked(operation: str, impl: str, x: Tensor, *others: Tensor) -> ModuleType:
    """The backend, if it can take these tensors. BackendError, with the reason, if not."""
    module = backend(operation, impl)
    # Triton's launchers check for themselves.
    reason = module.unsupported(x, *others) if hasattr(module, "unsupported") else None
    if reason is not None:
        raise BackendError(f"{operation} by {impl!r} cannot take {tuple(x.shape)}: {reason}")
    return module


@torch.compiler.assume_constant_result
def _library_is_built() -> bool:
    return _library_path() is not None


# Looked up once. (Of a cached function a compiler does not see that its result is to be constant.)
_library_path = cache(native.library_path)
