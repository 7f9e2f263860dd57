"""Group norm and SiLU in fp32 on the CPU, by the C++ library (csrc/group_norm_silu.h).

A sample's results do not depend on the batch or the threads.
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from fastdigin_kernels.common import native
from fastdigin_kernels.common.native import unsupported  # noqa: F401 - as choice.py wants it
from fastdigin_kernels.group_norm_silu.api import memory_format

_library = native.load()
_fields = struct.Struct("12qd").pack  # FastdiginGroupNormSilu


def forward(
    x_bchw: Tensor, weight_c: Tensor, bias_c: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """silu(group_norm(x)) (B,C,H,W) in x's memory format, and mean and 1/std (B,G)."""
    assert silu, "without SiLU it is PyTorch's own"
    layout = memory_format(x_bchw)
    x_bchw = x_bchw.contiguous(memory_format=layout)
    y_bchw = torch.empty_like(x_bchw)
    mean_bg = x_bchw.new_empty(x_bchw.shape[0], groups)
    rstd_bg = torch.empty_like(mean_bg)
    function = _library.fastdigin_group_norm_silu_forward
    _call(function, layout, x_bchw, weight_c, bias_c, mean_bg, rstd_bg, None, y_bchw, eps)
    return y_bchw, mean_bg, rstd_bg


def backward(
    grad_bchw: Tensor,
    x_bchw: Tensor,
    weight_c: Tensor,
    bias_c: Tensor,
    mean_bg: Tensor,
    rstd_bg: Tensor,
    silu: bool,
) -> Tensor:
    """The gradient with respect to x, in x's memory format, from `forward`'s statistics."""
    assert silu, "without SiLU it is PyTorch's own"
    layout = memory_format(x_bchw)
    grad_bchw = grad_bchw.contiguous(memory_format=layout)
    x_bchw = x_bchw.contiguous(memory_format=layout)
    dx_bchw = torch.empty_like(x_bchw)
    function = _library.fastdigin_group_norm_silu_backward
    _call(function, layout, x_bchw, weight_c, bias_c, mean_bg, rstd_bg, grad_bchw, dx_bchw, 0.0)
    return dx_bchw


def _call(function, layout, x_bchw, weight_c, bias_c, mean_bg, rstd_bg, grad_bchw, y_bchw, eps):
    batch, channels, height, width = x_bchw.shape
    assert weight_c.dtype is bias_c.dtype is torch.float32, (
        f"weight and bias must be float32 as x, got {weight_c.dtype} and {bias_c.dtype}"
    )
    weight_c, bias_c = weight_c.contiguous(), bias_c.contiguous()
    tensors = (x_bchw, weight_c, bias_c, mean_bg, rstd_bg, grad_bchw, y_bchw)
    fields = _fields(
        batch, channels, height * width, mean_bg.shape[1], layout == torch.channels_last,
        *(0 if tensor is None else tensor.data_ptr() for tensor in tensors), eps,
    )  # fmt: skip
    native.check(function(fields, torch.get_num_threads()))
