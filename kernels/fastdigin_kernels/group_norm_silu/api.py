"""Group norm followed by SiLU, with frozen parameters: keeps its input and the group statistics.

Autograd also keeps the normalised tensor, for SiLU's derivative. Here the backward normalises anew.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastdigin_kernels.common import fused
from fastdigin_kernels.common.autograd import differentiable, once_differentiable, require_frozen
from fastdigin_kernels.common.registry import register


def group_norm_silu(
    x_bchw: Tensor,
    weight_c: Tensor,
    bias_c: Tensor,
    groups: int,
    eps: float = 1e-5,
    impl: str = "auto",
) -> Tensor:
    """silu(group_norm(x)), differentiable (once) in x alone -> (B,C,H,W).

    impl (fused.py): "torch" has the same operations as PyTorch's, so the same bits; "cpp" and
    "triton" read and write memory less often. Raises ValueError if weight or bias requires a
    gradient or does not fit x.
    """
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
    impl = fused.choose(impl, x_bchw)
    require_frozen("group_norm_silu", weight=weight_c, bias=bias_c)
    # A copy, where one is needed, is made here: it is kept instead of x and not made again.
    x_bchw = x_bchw.contiguous(memory_format=_memory_format(x_bchw))
    return _group_norm_silu(x_bchw, weight_c, bias_c, groups, eps, impl)


class _GroupNormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(x_bchw, weight_c, bias_c, groups, eps, impl):
        if impl != "torch":
            return _forward_operation(x_bchw, weight_c, bias_c, groups, eps, impl)
        normalised, mean_bg, rstd_bg = _group_norm(x_bchw, weight_c, bias_c, groups, eps)
        return F.silu(normalised, inplace=True), mean_bg, rstd_bg

    @staticmethod
    def setup_context(ctx, inputs, output):
        x_bchw, weight_c, bias_c, ctx.groups, ctx.eps, ctx.impl = inputs
        _, mean_bg, rstd_bg = output
        ctx.mark_non_differentiable(mean_bg, rstd_bg)
        ctx.save_for_backward(x_bchw, weight_c, bias_c, mean_bg, rstd_bg)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_bchw, *_):
        x_bchw, weight_c, bias_c, mean_bg, rstd_bg = ctx.saved_tensors
        if ctx.impl != "torch":
            grad_x = _backward_operation(grad_bchw, *ctx.saved_tensors, ctx.impl)
            return grad_x, None, None, None, None, None
        normalised, _, _ = _group_norm(x_bchw, weight_c, bias_c, ctx.groups, ctx.eps)
        grad_bchw = torch.ops.aten.silu_backward(grad_bchw, normalised)
        batch, channels, height, width = x_bchw.shape
        grad_x, _, _ = torch.ops.aten.native_group_norm_backward(
            grad_bchw.contiguous(memory_format=_memory_format(x_bchw)),
            x_bchw,
            mean_bg,
            rstd_bg,
            weight_c,
            batch,
            channels,
            height * width,
            ctx.groups,
            [True, False, False],
        )
        return grad_x, None, None, None, None, None


_group_norm_silu = differentiable(_GroupNormSiLU, kept=2)


def _group_norm(x_bchw, weight_c, bias_c, groups, eps) -> tuple[Tensor, Tensor, Tensor]:
    """The normalised tensor, and mean and 1 / standard deviation of each group, (B,G) both."""
    batch, channels, height, width = x_bchw.shape
    return torch.native_group_norm(
        x_bchw, weight_c, bias_c, batch, channels, height * width, groups, eps
    )


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    module = fused.checked("group_norm_silu", impl, x, weight, bias)
    return module.forward(x, weight, bias, groups, eps)


def _fake_forward(x, weight, bias, groups, eps, impl):
    mean = x.new_empty(x.shape[0], groups, dtype=torch.float32)
    return torch.empty_like(x), mean, torch.empty_like(mean)


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, impl: str
) -> Tensor:
    module = fused.checked("group_norm_silu", impl, x, weight, bias)
    return module.backward(grad, x, weight, bias, mean, rstd)


def _fake_backward(grad, x, weight, bias, mean, rstd, impl):
    return torch.empty_like(x)


_forward_operation = register("group_norm_silu_forward", _forward, _fake_forward)
_backward_operation = register("group_norm_silu_backward", _backward, _fake_backward)


def _memory_format(x_bchw: Tensor) -> torch.memory_format:
    """What PyTorch's group norm takes: channels last on the CPU only."""
    if x_bchw.device.type == "cpu" and x_bchw.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def group_norm_silu_reference(
    x_bchw: Tensor, weight_c: Tensor, bias_c: Tensor, groups: int, eps: float = 1e-5
) -> Tensor:
    """`group_norm_silu` by its definition."""
    x_bgnhw = x_bchw.unflatten(1, (groups, -1))
    variance, mean = torch.var_mean(x_bgnhw, dim=(2, 3, 4), correction=0, keepdim=True)
    normalised = ((x_bgnhw - mean) / torch.sqrt(variance + eps)).flatten(1, 2)
    y_bchw = normalised * weight_c[:, None, None] + bias_c[:, None, None]
    return y_bchw * torch.sigmoid(y_bchw)
