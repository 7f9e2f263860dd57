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
    fields = _fields(y.numel() // y.shape[-1], y.shape[-1], x.data_ptr(), 0, y.data_ptr())
    native.check(_library.fastdigin_geglu_forward(fields, torch.get_num_threads()))
    return y


def backward(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient with respect to x, (..., 2d)."""
    x, grad = x.contiguous(), grad.contiguous()
    dx, width = torch.empty_like(x), grad.shape[-1]
    fields = _fields(grad.numel() // width, width, x.data_ptr(), grad.data_ptr(), dx.data_ptr())
    native.check(_library.fastdigin_geglu_backward(fields, torch.get_num_threads()))
    return dx
