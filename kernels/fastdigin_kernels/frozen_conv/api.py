"""2-D convolution with frozen weights: keeps nothing but its weight for the backward.

Autograd keeps the input of every convolution, because one formula serves the gradients of input,
weight and bias (pytorch#133566). With frozen weights only the input's gradient is wanted: a
transposed convolution of the incoming gradient with the weight, in which the input has no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from fastdigin_kernels.common import choice, native, shortcuts
from fastdigin_kernels.common.autograd import differentiable, require_frozen
from fastdigin_kernels.common.devices import kind_of
from fastdigin_kernels.common.registry import backend, register

IMPLEMENTATIONS = ("auto", "torch", "cpp")
_GEOMETRY_3X3 = ((1, 1), (1, 1), (1, 1), 1)
_GEOMETRY_1X1 = ((1, 1), (0, 0), (1, 1), 1)
_FEWEST_CHANNELS = 16
_LARGEST_WEIGHT = 2**16


def conv2d(
    x_bihw: Tensor,
    weight_oikk: Tensor,
    bias_o: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    impl: str = "auto",
) -> Tensor:
    """`torch.nn.functional.conv2d`, differentiable in x alone -> (B,O,H',W').

    The same output and memory format; padding is in pixels. impl: "torch" is PyTorch's; "cpp" makes
    a quarter of its products for filters of 3x3 (Winograd, arXiv 1509.09308), rounds by three to
    five times as much, and keeps eight times the weight's memory; "auto" takes it on CPUs where it
    is faster and the weight is small, and a product for filters of 1x1.

    Raises ValueError if weight or bias requires a gradient or for another impl, and BackendError
    where the named one cannot run.
    """
    assert x_bihw.ndim == 4, f"x must be (B,I,H,W), got {tuple(x_bihw.shape)}"
    require_frozen("a frozen convolution", weight=weight_oikk, bias=bias_o)
    geometry = (_pair(stride), _pair(padding), _pair(dilation), groups)
    kernel = weight_oikk.shape[2:]
    is_3x3 = kernel == (3, 3) and geometry == _GEOMETRY_3X3
    if impl == "auto":
        on_cpu = kind_of(x_bihw.device) == "cpu"
        if on_cpu and kernel == (1, 1) and geometry == _GEOMETRY_1X1 and _is_channels_last(x_bihw):
            return _product(x_bihw, weight_oikk, bias_o)
        if not (on_cpu and is_3x3 and _pays(x_bihw, weight_oikk)):
            impl = "torch"
    impl = choice.choose("frozen_conv", impl, (int(is_3x3),), x_bihw)
    if impl == "torch":
        return _frozen_conv2d()(x_bihw, weight_oikk, bias_o, *geometry)
    return _conv3x3()(x_bihw, weight_oikk, bias_o, False, impl)


def prepare(weight_oikk: Tensor, *geometry: int | tuple[int, int]) -> None:
    """Does ahead what "auto" keeps of a weight on CPUs, so that no later call needs memory for it.

    geometry: stride, padding, dilation and groups, as `conv2d` has them.
    """
    *pairs, groups = geometry
    is_3x3 = (*map(_pair, pairs), groups) == _GEOMETRY_3X3 and weight_oikk.shape[2:] == (3, 3)
    # Fake weights have no numbers.
    on_cpu = kind_of(weight_oikk.device) == "cpu" and not shortcuts.may_be_watched((weight_oikk,))
    if is_3x3 and on_cpu and _pays(weight_oikk, weight_oikk):
        impl = choice.choose("frozen_conv", "auto", (1,), weight_oikk)
        if impl != "torch":
            backend("frozen_conv", impl).prepare(weight_oikk)


def memory_format(x_bchw: Tensor, weight_oikk: Tensor) -> torch.memory_format:
    """Of PyTorch's result: channels last where one of both is so, and not otherwise contiguous."""
    if _is_channels_last(x_bchw) or _is_channels_last(weight_oikk):
        return torch.channels_last
    return torch.contiguous_format


def _is_channels_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _product(x_bihw: Tensor, weight_oi11: Tensor, bias_o: Tensor | None) -> Tensor:
    """A convolution of 1x1, which oneDNN takes 1.2 to 2 times as long for. Keeps the weight."""
    x_bhwi = x_bihw.permute(0, 2, 3, 1)
    return F.linear(x_bhwi, weight_oi11.flatten(1), bias_o).permute(0, 3, 1, 2)


def _pays(x_bihw: Tensor, weight_oikk: Tensor) -> bool:
    """Whether "cpp" is faster, does what autocast says, and does not need much memory."""
    outputs, inputs = weight_oikk.shape[:2]
    return (
        min(outputs, inputs) >= _FEWEST_CHANNELS < max(outputs, inputs)
        and outputs * inputs <= _LARGEST_WEIGHT
        and x_bihw.dtype is weight_oikk.dtype is torch.float32
        and not torch.is_autocast_enabled(x_bihw.device.type)
        and _has_vectors()
    )


@cache
def _has_vectors() -> bool:
    """Portable code was not held against PyTorch's, which is good on ARM."""
    return bool(native.cpu_features())


@register("frozen_conv")
def frozen_conv_convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool, impl: str
) -> Tensor:
    """y"""
    channels = weight.shape[1 if transposed else 0]
    y = x.new_empty(x.shape[0], channels, *x.shape[2:])
    return y.to(memory_format=memory_format(x, weight))


@register_flop_formula(torch.ops.fastdigin.frozen_conv_convolve)
def _flops(x: Sequence[int], weight: Sequence[int], *_, **__) -> int:
    """As if it were computed directly, as of PyTorch's: a count for comparisons of networks."""
    batch, _, height, width = x
    outputs, inputs, *_ = weight
    return 2 * 9 * batch * height * width * outputs * inputs


class _Conv3x3(torch.autograd.Function):
    """By a backend. transposed: with the filter flipped, from O to I channels; without a bias."""

    @staticmethod
    def forward(x_bihw, weight_oikk, bias_o, transposed, impl):
        return frozen_conv_convolve(x_bihw, weight_oikk, bias_o, transposed, impl)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, weight_oikk, _, ctx.transposed, ctx.impl = inputs
        ctx.save_for_backward(weight_oikk)

    @staticmethod
    def backward(ctx, grad_bohw):
        (weight_oikk,) = ctx.saved_tensors
        grad_x = _conv3x3()(grad_bohw, weight_oikk, None, not ctx.transposed, ctx.impl)
        return grad_x, None, None, None, None


class _FrozenConv2d(torch.autograd.Function):
    """PyTorch's."""

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


_conv3x3 = differentiable(_Conv3x3, first_output=False)
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


# C++ was faster for all shapes that `_pays` lets through (bench/NOTES.md).
choice.declare(
    "frozen_conv",
    choice.Operation("torch", IMPLEMENTATIONS, None, untimed=("cpu",), rivals={"cpu": ("cpp",)}),
)
