"""GEGLU in Triton, forward and gradient: one pass over memory each, nothing in between stored."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdigin_kernels.common import triton_launch as launch
from fastdigin_kernels.common.triton_launch import unsupported  # noqa: F401 - as choice.py wants it

# 256 divides the widths of SD 1, 2 and XL (1280, 2560, 5120): no columns are padded.
ROWS, COLS, WARPS = 8, 256, 4


def forward(x: Tensor) -> Tensor:
    """a * gelu(b) of x = [a, b]: (..., 2d) -> (..., d), contiguous."""
    x = x.contiguous()
    y = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
    _launch(forward_kernel, y, (x, y))
    return y


def backward(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient with respect to x, (..., 2d)."""
    x, grad = x.contiguous(), grad.contiguous()
    dx = torch.empty_like(x)
    _launch(backward_kernel, grad, (grad, x, dx))
    return dx


@triton.jit
def _place(rows, width, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Row numbers (64 bits) and columns of this program's tile, and its mask."""
    tiles = tl.cdiv(width, COLS)
    row = tl.program_id(0) // tiles * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) % tiles * COLS + tl.arange(0, COLS)
    mask = (row < rows)[:, None] & (column < width)[None, :]
    return row.to(tl.int64)[:, None], column[None, :], mask


@triton.jit
def _normal_cdf(x):
    """The standard normal distribution's, by the error function: gelu(x) = x cdf(x)."""
    return 0.5 * (1 + tl.erf(x * 0.7071067811865476))


@triton.jit(do_not_specialize=["rows"])
def forward_kernel(x_ptr, y_ptr, rows, width, ROWS: tl.constexpr, COLS: tl.constexpr):
    """A tile of y (rows, width) = a gelu(b) of x = [a, b] (rows, 2 width), computed in fp32."""
    row, column, mask = _place(rows, width, ROWS, COLS)
    x_ptr += row * 2 * width + column
    a = tl.load(x_ptr, mask=mask).to(tl.float32)
    b = tl.load(x_ptr + width, mask=mask).to(tl.float32)
    y = a * b * _normal_cdf(b)
    tl.store(y_ptr + row * width + column, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def backward_kernel(grad_ptr, x_ptr, dx_ptr, rows, width, ROWS: tl.constexpr, COLS: tl.constexpr):
    """The same tile of both halves of dx = [grad gelu(b), grad a gelu'(b)]; gelu'(b) = cdf + b pdf.

    grad: of y. cdf and pdf are the standard normal distribution's at b.
    """
    row, column, mask = _place(rows, width, ROWS, COLS)
    x_ptr += row * 2 * width + column
    dx_ptr += row * 2 * width + column
    a = tl.load(x_ptr, mask=mask).to(tl.float32)
    b = tl.load(x_ptr + width, mask=mask).to(tl.float32)
    grad = tl.load(grad_ptr + row * width + column, mask=mask).to(tl.float32)
    cdf = _normal_cdf(b)
    pdf = 0.3989422804014327 * tl.exp(-0.5 * b * b)
    tl.store(dx_ptr, (grad * b * cdf).to(dx_ptr.dtype.element_ty), mask=mask)
    db = grad * a * (cdf + b * pdf)
    tl.store(dx_ptr + width, db.to(dx_ptr.dtype.element_ty), mask=mask)


def _launch(kernel, half: Tensor, arguments: tuple) -> None:
    """half: a tensor of the output's shape."""
    width = half.shape[-1]
    rows = half.numel() // width
    with launch.on(half):
        kernel[(triton.cdiv(rows, ROWS) * triton.cdiv(width, COLS),)](
            *arguments, rows, width, ROWS=ROWS, COLS=COLS, num_warps=WARPS
        )
