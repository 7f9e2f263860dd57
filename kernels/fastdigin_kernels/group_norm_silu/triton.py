"""Group norm followed by SiLU in Triton, forward and input gradient, with frozen parameters.

One program takes one group of one sample and reads it twice, for the statistics and for the result;
the second time it comes from the cache (a group of SD 1.4 has 245 kB at most). So a pass reads and
writes main memory once, where PyTorch's separate norm and activation do so twice. Sums run in a
fixed order: results repeat bit for bit, and do not depend on the batch.

Groups are contiguous in (B,C,H,W) memory. In channels-last memory, which convolutions prefer on
GPUs, they are H*W runs of C/G numbers; both orders of walking a group are one kernel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdigin_kernels.common import triton_launch as launch

WARPS = 8
_LARGEST_BLOCK = 2048


def group_norm_silu_backward_reference(
    grad_bchw: Tensor, x_bchw: Tensor, weight_c: Tensor, bias_c: Tensor, groups: int, eps: float
) -> Tensor:
    """The gradient with respect to x by definition (forward: group_norm_silu_reference)."""
    x_bgn = x_bchw.unflatten(1, (groups, -1)).flatten(2)
    rstd_bg1 = (x_bgn.var(2, correction=0, keepdim=True) + eps).rsqrt()
    normalised = ((x_bgn - x_bgn.mean(2, keepdim=True)) * rstd_bg1).view_as(x_bchw)
    y = normalised * weight_c[:, None, None] + bias_c[:, None, None]
    gate = torch.sigmoid(y)
    grad = grad_bchw * gate * (1 + y * (1 - gate)) * weight_c[:, None, None]
    grad, normalised = (t.unflatten(1, (groups, -1)).flatten(2) for t in (grad, normalised))
    along_x = (grad * normalised).mean(2, keepdim=True) * normalised
    return (rstd_bg1 * (grad - grad.mean(2, keepdim=True) - along_x)).view_as(x_bchw)


def forward(
    x_bchw: Tensor, weight_c: Tensor, bias_c: Tensor, groups: int, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """silu(group_norm(x)) (B,C,H,W) in x's memory format, and mean and 1/std (B,G) in fp32.

    float16, bfloat16 or float32. x is copied if it is contiguous in neither format. ValueError
    names an argument that cannot be taken.
    """
    x_bchw = _prepared(x_bchw, weight_c, bias_c, groups)
    y_bchw = torch.empty_like(x_bchw)
    mean_bg = x_bchw.new_empty(x_bchw.shape[0], groups, dtype=torch.float32)
    rstd_bg = torch.empty_like(mean_bg)
    _launch(
        forward_kernel, x_bchw, groups, (x_bchw, y_bchw, weight_c, bias_c, mean_bg, rstd_bg, eps)
    )
    return y_bchw, mean_bg, rstd_bg


def backward(
    grad_bchw: Tensor,
    x_bchw: Tensor,
    weight_c: Tensor,
    bias_c: Tensor,
    mean_bg: Tensor,
    rstd_bg: Tensor,
) -> Tensor:
    """The gradient with respect to x, in x's memory format, from `forward`'s statistics."""
    x_bchw = _prepared(x_bchw, weight_c, bias_c, mean_bg.shape[1])
    if grad_bchw.shape != x_bchw.shape or grad_bchw.device != x_bchw.device:
        raise ValueError(
            f"the gradient must be {tuple(x_bchw.shape)} on {x_bchw.device} as x, it is "
            f"{tuple(grad_bchw.shape)} on {grad_bchw.device}"
        )
    grad_bchw = grad_bchw.contiguous(memory_format=_memory_format(x_bchw))
    dx_bchw = torch.empty_like(x_bchw)
    arguments = (grad_bchw, x_bchw, dx_bchw, weight_c, bias_c, mean_bg, rstd_bg)
    _launch(backward_kernel, x_bchw, mean_bg.shape[1], arguments)
    return dx_bchw


@triton.jit
def _group_offsets(first, size, pixels, channels, group_channels, BLOCK: tl.constexpr,
                   CHANNELS_LAST: tl.constexpr):  # fmt: skip
    """Of BLOCK elements of a group: where they lie from its first on, their channel, a mask."""
    i = first + tl.arange(0, BLOCK)
    if CHANNELS_LAST:
        channel = i % group_channels
        offsets = i // group_channels * channels + channel
    else:
        channel = i // pixels
        offsets = i
    return offsets, channel, i < size


@triton.jit
def _group_place(channels, groups, pixels, CHANNELS_LAST: tl.constexpr):
    """This program's group: where it begins in the tensor (64 bits), and its first channel."""
    sample = (tl.program_id(0) // groups).to(tl.int64)
    first_channel = tl.program_id(0) % groups * (channels // groups)
    start = sample * channels * pixels
    if CHANNELS_LAST:
        start += first_channel
    else:
        start += first_channel.to(tl.int64) * pixels
    return start, first_channel


@triton.jit(do_not_specialize=["groups"])
def forward_kernel(
    x_ptr, y_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, eps, channels, groups, pixels,
    BLOCK: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    group_channels = channels // groups
    size = group_channels * pixels
    start, first_channel = _group_place(channels, groups, pixels, CHANNELS_LAST)
    x_ptr += start
    y_ptr += start
    weight_ptr += first_channel
    bias_ptr += first_channel

    # Mean and sum of squared deviations, block by block (Chan et al.): nothing cancels.
    mean = 0.0
    squares = 0.0
    for first in range(0, size, BLOCK):
        offsets, _, mask = _group_offsets(first, size, pixels, channels, group_channels, BLOCK,
                                          CHANNELS_LAST)  # fmt: skip
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        count = tl.minimum(size - first, BLOCK).to(tl.float32)
        block_mean = tl.sum(x, 0) / count
        deviations = tl.where(mask, x - block_mean, 0.0)
        difference = block_mean - mean
        share = count / (first + count)
        squares += tl.sum(deviations * deviations, 0) + difference * difference * first * share
        mean += difference * share
    rstd = 1 / tl.sqrt(squares / size + eps)
    tl.store(mean_ptr + tl.program_id(0), mean)
    tl.store(rstd_ptr + tl.program_id(0), rstd)

    for first in range(0, size, BLOCK):
        offsets, channel, mask = _group_offsets(first, size, pixels, channels, group_channels,
                                                BLOCK, CHANNELS_LAST)  # fmt: skip
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + channel, mask=mask, other=0.0).to(tl.float32)
        bias = tl.load(bias_ptr + channel, mask=mask, other=0.0).to(tl.float32)
        y = (x - mean) * rstd * weight + bias
        tl.store(y_ptr + offsets, (y * tl.sigmoid(y)).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _gradient_block(grad_ptr, x_ptr, weight_ptr, bias_ptr, mean, rstd, first, size, pixels,
                    channels, group_channels, BLOCK: tl.constexpr,
                    CHANNELS_LAST: tl.constexpr):  # fmt: skip
    """The gradient with respect to the normalised x, the normalised x, offsets and mask."""
    offsets, channel, mask = _group_offsets(first, size, pixels, channels, group_channels, BLOCK,
                                            CHANNELS_LAST)  # fmt: skip
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + channel, mask=mask, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channel, mask=mask, other=0.0).to(tl.float32)
    normalised = (x - mean) * rstd
    y = normalised * weight + bias
    gate = tl.sigmoid(y)
    return grad * gate * (1 + y * (1 - gate)) * weight, normalised, offsets, mask


@triton.jit(do_not_specialize=["groups"])
def backward_kernel(
    grad_ptr, x_ptr, dx_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, channels, groups, pixels,
    BLOCK: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """dx = rstd (g - mean(g) - n mean(g n)) with n the normalised x and g its gradient."""
    group_channels = channels // groups
    size = group_channels * pixels
    start, first_channel = _group_place(channels, groups, pixels, CHANNELS_LAST)
    grad_ptr += start
    x_ptr += start
    dx_ptr += start
    weight_ptr += first_channel
    bias_ptr += first_channel
    mean = tl.load(mean_ptr + tl.program_id(0))
    rstd = tl.load(rstd_ptr + tl.program_id(0))

    sum_g = 0.0
    sum_gn = 0.0
    for first in range(0, size, BLOCK):
        g, n, _, _ = _gradient_block(grad_ptr, x_ptr, weight_ptr, bias_ptr, mean, rstd, first, size,
                                     pixels, channels, group_channels, BLOCK,
                                     CHANNELS_LAST)  # fmt: skip
        sum_g += tl.sum(g, 0)
        sum_gn += tl.sum(g * n, 0)
    mean_g = sum_g / size
    mean_gn = sum_gn / size
    for first in range(0, size, BLOCK):
        g, n, offsets, mask = _gradient_block(grad_ptr, x_ptr, weight_ptr, bias_ptr, mean, rstd,
                                              first, size, pixels, channels, group_channels, BLOCK,
                                              CHANNELS_LAST)  # fmt: skip
        dx = rstd * (g - mean_g - n * mean_gn)
        tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=mask)


def block_size(group_elements: int) -> int:
    """Elements a program takes at a time: the whole group, if it is small."""
    return min(_LARGEST_BLOCK, triton.next_power_of_2(group_elements))


def _launch(kernel, x_bchw: Tensor, groups: int, arguments: tuple) -> None:
    batch, channels, height, width = x_bchw.shape
    pixels = height * width
    if not x_bchw.numel():
        return
    with launch.on(x_bchw):
        kernel[(batch * groups,)](
            *arguments, channels, groups, pixels,
            BLOCK=block_size(channels // groups * pixels),
            CHANNELS_LAST=_memory_format(x_bchw) == torch.channels_last, num_warps=WARPS,
        )  # fmt: skip


def _prepared(x_bchw: Tensor, weight_c: Tensor, bias_c: Tensor, groups: int) -> Tensor:
    """x, contiguous in one of the two formats; ValueError if the kernels cannot take it."""
    if x_bchw.ndim != 4:
        raise ValueError(f"x must be (B,C,H,W), got {tuple(x_bchw.shape)}")
    launch.require("group norm", x_bchw)
    channels = x_bchw.shape[1]
    if groups < 1 or channels % groups:
        raise ValueError(f"groups must divide the {channels} channels, got {groups}")
    for name, parameter in (("weight", weight_c), ("bias", bias_c)):
        if parameter.shape != (channels,) or parameter.device != x_bchw.device:
            raise ValueError(
                f"{name} must be ({channels},) on {x_bchw.device}, got {tuple(parameter.shape)} on "
                f"{parameter.device}"
            )
    return x_bchw.contiguous(memory_format=_memory_format(x_bchw))


def _memory_format(x_bchw: Tensor) -> torch.memory_format:
    contiguous = x_bchw.is_contiguous()
    if not contiguous and x_bchw.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format
