"""GEGLU in fp32 on the CPU, by the C++ library (csrc/geglu.h): one pass over memory each way."""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from fastdigin_kernels.common import native
from fastdigin_kernels.common.native import unsupported  # noqa: F401 - as choice.py wants it

_library = native.load()
_fields = struct.Struct("5q").pack  # FastdiginGeglu


def forward(x: Tensor) -> Tensor:
    """a * gelu(b) of x = [a, b]: (..., 2d) -> (..., d), contiguous."""
    x = x.contiguous()
    y = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
    _call("forward", x, None, y)
    return y


def backward(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient with respect to x, (..., 2d)."""
    x, grad = x.contiguous(), grad.contiguous()
    dx = torch.empty_like(x)
    _call("backward", x, grad, dx)
    return dx


def _call(direction: str, x: Tensor, grad: Tensor | None, y: Tensor) -> None:
    width = x.shape[-1] // 2
    fields = _fields(
        x.numel() // (2 * width), width, x.data_ptr(),
        0 if grad is None else grad.data_ptr(), y.data_ptr(),
    )  # fmt: skip
    # It needs no scratch memory and cannot fail.
    getattr(_library, f"fastdigin_geglu_{direction}")(fields, torch.get_num_threads())
