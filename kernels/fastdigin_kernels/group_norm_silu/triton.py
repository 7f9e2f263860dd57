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
from fastdigin_kernels.common.triton_launch import unsupported  # noqa: F401 - as choice.py wants it
from fastdigin_kernels.group_norm_silu.api import memory_format

WARPS = 8
_LARGEST_BLOCK = 2048


def forward(
    x_bchw: Tensor, weight_c: Tensor, bias_c: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """silu(group_norm(x)) (B,C,H,W) in x's memory format, and mean and 1/std (B,G) in fp32."""
    x_bchw = x_bchw.contiguous(memory_format=memory_format(x_bchw))
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
    layout = memory_format(x_bchw)
    grad_bchw, x_bchw = (t.contiguous(memory_format=layout) for t in (grad_bchw, x_bchw))
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
    with launch.on(x_bchw):
        kernel[(batch * groups,)](
            *arguments, channels, groups, pixels,
            BLOCK=block_size(channels // groups * pixels),
            CHANNELS_LAST=memory_format(x_bchw) == torch.channels_last, num_warps=WARPS,
        )  # fmt: skip
