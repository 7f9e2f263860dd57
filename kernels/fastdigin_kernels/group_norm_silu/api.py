"""Group norm followed by SiLU, with frozen parameters: keeps its input and the group statistics.

Autograd also keeps the normalised tensor, for SiLU's derivative. Here the backward normalises anew.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fastdigin_kernels.common import choice
from fastdigin_kernels.common.autograd import differentiable, once_differentiable, require_frozen
from fastdigin_kernels.common.devices import kind_of
from fastdigin_kernels.common.registry import register

IMPLEMENTATIONS = ("auto", "torch", "cpp", "triton")
_TIMED_NUMBERS = 2**24


def group_norm_silu(
    x_bchw: Tensor,
    weight_c: Tensor,
    bias_c: Tensor,
    groups: int,
    eps: float = 1e-5,
    impl: str = "auto",
) -> Tensor:
    """silu(group_norm(x)), differentiable (once) in x alone -> (B,C,H,W).

    impl: "torch" has the same operations as PyTorch's, so the same bits; "cpp" and "triton" read
    and write memory less often; "auto" chooses (common/choice.py). The result has x's memory
    format, but on CUDA by "torch", which knows no channels last there.

    Raises ValueError if weight or bias requires a gradient or does not fit x, or for another impl,
    and BackendError where the named one cannot run.
    """
    _check(x_bchw, weight_c, bias_c, groups)
    impl = choice.choose("group_norm_silu", impl, (*x_bchw.shape[1:], groups), x_bchw)
    # A copy, where one is needed, is made here: it is kept instead of x and not made again.
    on_cuda_by_torch = impl == "torch" and kind_of(x_bchw.device) == "cuda"
    layout = torch.contiguous_format if on_cuda_by_torch else memory_format(x_bchw)
    x_bchw = in_format(x_bchw, layout)
    return _group_norm_silu()(x_bchw, weight_c, bias_c, groups, eps, True, impl)


def group_norm(
    x_bchw: Tensor,
    weight_c: Tensor,
    bias_c: Tensor,
    groups: int,
    eps: float = 1e-5,
    impl: str = "auto",
) -> Tensor:
    """Group norm alone -> (B,C,H,W): "torch" is PyTorch's; "triton" keeps channels last on CUDA.

    "auto" takes "triton" where `group_norm_silu` does. Errors as there.
    """
    if impl not in ("auto", "torch", "triton"):
        raise ValueError(f"impl must be one of auto, torch, triton, got {impl!r}")
    _check(x_bchw, weight_c, bias_c, groups)
    impl = choice.choose("group_norm_silu", impl, (*x_bchw.shape[1:], groups), x_bchw)
    if impl != "triton":
        return F.group_norm(x_bchw, groups, weight_c, bias_c, eps)
    x_bchw = in_format(x_bchw, memory_format(x_bchw))
    return _group_norm_silu()(x_bchw, weight_c, bias_c, groups, eps, False, impl)


def _check(x_bchw: Tensor, weight_c: Tensor, bias_c: Tensor, groups: int) -> None:
    assert x_bchw.ndim == 4, f"x must be (B,C,H,W), got {tuple(x_bchw.shape)}"
    assert groups > 0 and x_bchw.shape[1] % groups == 0, (
        f"groups must divide the {x_bchw.shape[1]} channels, got {groups}"
    )
    for name, parameter in (("weight", weight_c), ("bias", bias_c)):
        if parameter.shape != x_bchw.shape[1:2] or parameter.device != x_bchw.device:
            raise ValueError(
                f"{name} must be ({x_bchw.shape[1]},) on {x_bchw.device}, got "
                f"{tuple(parameter.shape)} on {parameter.device}"
            )
    require_frozen("group_norm_silu", weight=weight_c, bias=bias_c)


@register("group_norm_silu")
def group_norm_silu_forward(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    """y in x's memory format, mean and 1 / standard deviation of each group (B,G)"""
    mean = x.new_empty(x.shape[0], groups, dtype=torch.float32)
    return torch.empty_like(x), mean, torch.empty_like(mean)


@register("group_norm_silu")
def group_norm_silu_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    silu: bool,
    impl: str,
) -> Tensor:
    """dx in x's memory format"""
    return torch.empty_like(x)


class _GroupNormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(x_bchw, weight_c, bias_c, groups, eps, silu, impl):
        if impl != "torch":
            return group_norm_silu_forward(x_bchw, weight_c, bias_c, groups, eps, silu, impl)
        normalised, mean_bg, rstd_bg = _group_norm(x_bchw, weight_c, bias_c, groups, eps)
        return F.silu(normalised, inplace=True), mean_bg, rstd_bg

    @staticmethod
    def setup_context(ctx, inputs, output):
        x_bchw, weight_c, bias_c, ctx.groups, ctx.eps, ctx.silu, ctx.impl = inputs
        _, mean_bg, rstd_bg = output
        ctx.mark_non_differentiable(mean_bg, rstd_bg)
        ctx.save_for_backward(x_bchw, weight_c, bias_c, mean_bg, rstd_bg)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_bchw, *_):
        x_bchw, weight_c, bias_c, mean_bg, rstd_bg = ctx.saved_tensors
        if ctx.impl != "torch":
            grad_x = group_norm_silu_backward(grad_bchw, *ctx.saved_tensors, ctx.silu, ctx.impl)
            return grad_x, *[None] * 6
        normalised, _, _ = _group_norm(x_bchw, weight_c, bias_c, ctx.groups, ctx.eps)
        grad_bchw = torch.ops.aten.silu_backward(grad_bchw, normalised)
        batch, channels, height, width = x_bchw.shape
        grad_x, _, _ = torch.ops.aten.native_group_norm_backward(
            in_format(grad_bchw, memory_format(x_bchw)), x_bchw, mean_bg, rstd_bg, weight_c,
            batch, channels, height * width, ctx.groups, [True, False, False],
        )  # fmt: skip
        return grad_x, *[None] * 6


_group_norm_silu = differentiable(_GroupNormSiLU)


def memory_format(x_bchw: Tensor) -> torch.memory_format:
    """Channels last where x is so and not otherwise contiguous."""
    if not x_bchw.is_contiguous() and x_bchw.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def in_format(x_bchw: Tensor, layout: torch.memory_format) -> Tensor:
    """x itself, or a copy, contiguous in a memory format.

    In its strides as well: PyTorch before 2.14 judges by those of dimensions of one element too,
    and refuses a batch of one whose stride is not that of an image.
    """
    x_bchw = x_bchw.contiguous(memory_format=layout)
    _, channels, height, width = x_bchw.shape
    image = channels * height * width
    usual = ((image, height * width, width, 1), (image, 1, width * channels, channels))
    return x_bchw if x_bchw.stride() in usual else x_bchw.clone(memory_format=layout)


def _group_norm(x_bchw, weight_c, bias_c, groups, eps) -> tuple[Tensor, Tensor, Tensor]:
    """The normalised tensor, and mean and 1 / standard deviation of each group, (B,G) both."""
    batch, channels, height, width = x_bchw.shape
    return torch.native_group_norm(
        x_bchw, weight_c, bias_c, batch, channels, height * width, groups, eps
    )


def _to_time(
    shape: choice.Shape, batch: int | None, dtype: torch.dtype, device: torch.device
) -> choice.Run:
    *shape, groups = shape
    batch = batch or choice.timed_batch(math.prod(shape), _TIMED_NUMBERS)
    x = torch.randn(batch, *shape, device=device, dtype=dtype)
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    weight, bias = torch.ones(2, shape[0], device=device, dtype=dtype)

    def run(impl: str) -> list[Tensor]:
        y = group_norm_silu(x, weight, bias, groups, impl=impl)
        return [y.detach(), *torch.autograd.grad(y, x, x.detach())]

    return run


# C++ was as fast or faster at the shapes of the embedded and the SD models, but for SDXL's largest
# with channels last, 0.90 and 0.97 of PyTorch's, which keeps far more (bench/results/kernels.json).
choice.declare(
    "group_norm_silu", choice.Operation("torch", IMPLEMENTATIONS, _to_time, untimed=("cpu",))
)
