"""2-D convolution with frozen weights: keeps nothing but its weight for the backward.

Autograd keeps the input of every convolution, because one formula serves the gradients of input,
weight and bias (pytorch#133566). With frozen weights only the input's gradient is wanted: a
transposed convolution of the incoming gradient with the weight, in which the input has no part.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastdigin_kernels.common.autograd import differentiable, require_frozen


def conv2d(
    x_bihw: Tensor,
    weight_oikk: Tensor,
    bias_o: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv2d`, differentiable in x alone -> (B,O,H',W').

    The same output and memory format; padding is in pixels. Raises ValueError if weight or bias
    requires a gradient.
    """
    assert x_bihw.ndim == 4, f"x must be (B,I,H,W), got {tuple(x_bihw.shape)}"
    require_frozen("a frozen convolution", weight=weight_oikk, bias=bias_o)
    geometry = (_pair(stride), _pair(padding), _pair(dilation), groups)
    return _frozen_conv2d()(x_bihw, weight_oikk, bias_o, *geometry)


class _FrozenConv2d(torch.autograd.Function):
    @staticmethod
    def forward(x_bihw, weight_oikk, bias_o, stride, padding, dilation, groups):
        return F.conv2d(x_bihw, weight_oikk, bias_o, stride, padding, dilation, groups)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x_bihw, weight_oikk, _, *ctx.geometry = inputs
        ctx.size = x_bihw.shape[2:]
        ctx.save_for_backward(weight_oikk)

    @staticmethod
    def backward(ctx, grad_bohw):
        # Autocast computes in another dtype than the weight's, and may be over by now.
        weight_oikk = ctx.saved_tensors[0].to(grad_bohw.dtype)
        grad_x = _input_gradient(grad_bohw, weight_oikk, ctx.size, *ctx.geometry)
        return grad_x, None, None, None, None, None, None


_frozen_conv2d = differentiable(_FrozenConv2d, first_output=False)


def _pair(x: int | tuple[int, int]) -> tuple[int, int]:
    return x if isinstance(x, tuple) else (x, x)


def _input_gradient(grad_bohw, weight_oikk, size, stride, padding, dilation, groups) -> Tensor:
    """Brings the gradient back to an input of ``size`` (H,W)."""
    # Rows and columns at the end of the input that a stride larger than 1 never reaches.
    unread = [
        size[i] - 1 + 2 * padding[i] - (grad_bohw.shape[2 + i] - 1) * stride[i]
        - (weight_oikk.shape[2 + i] - 1) * dilation[i]
        for i in (0, 1)
    ]  # fmt: skip
    return F.conv_transpose2d(
        grad_bohw, weight_oikk, None, stride, padding, unread, groups, dilation
    )
