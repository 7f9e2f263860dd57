"""Group norm, followed by SiLU or not, in Triton: forward and input gradient, parameters frozen.

An image is walked in tiles of pixels x channels, as it lies in memory: channels last, a row of a
tile is read at once whatever groups it belongs to, and a large group is shared among programs. So
there are three passes each way: partial sums of every channel over some pixels, the groups'
statistics from those, and the result. The first and the last read the image, the last writes.

Sums run in a fixed order, and how an image is split depends on its size alone: results repeat bit
for bit and do not depend on the batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdigin_kernels.common import triton_launch as launch
from fastdigin_kernels.common.triton_launch import unsupported  # noqa: F401 - as choice.py wants it
from fastdigin_kernels.group_norm_silu.api import memory_format

WARPS = 4
TILE = {True: (32, 64), False: (128, 4)}  # channels last or not: pixels, channels
CHUNK = 8  # partial sums of a channel that are added up at once
_FEWEST_PIXELS, _MOST_SPLITS = 256, 512


def forward(
    x_bchw: Tensor, weight_c: Tensor, bias_c: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(silu of) group_norm(x) (B,C,H,W) in x's memory format, and mean and 1/std (B,G) in fp32."""
    x_bchw = x_bchw.contiguous(memory_format=memory_format(x_bchw))
    y_bchw = torch.empty_like(x_bchw)
    walk = _Walk(x_bchw, groups)
    means, squares = walk.partial_sums()
    mean_bg, rstd_bg = walk.of_groups(), walk.of_groups()
    with launch.on(x_bchw):
        walk.sum(forward_sums_kernel, x_bchw, means, squares)
        walk.statistics(forward_statistics_kernel, means, squares, mean_bg, rstd_bg, eps)
        walk.apply(
            forward_kernel, x_bchw, y_bchw, weight_c, bias_c, mean_bg, rstd_bg, SILU=silu
        )  # fmt: skip
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
    """The gradient with respect to x, in x's memory format, from `forward`'s statistics.

    It is rstd (g - mean(g) - n mean(g n)) with n the normalised x and g its gradient.
    """
    layout = memory_format(x_bchw)
    grad_bchw, x_bchw = (t.contiguous(memory_format=layout) for t in (grad_bchw, x_bchw))
    dx_bchw = torch.empty_like(x_bchw)
    given = (grad_bchw, x_bchw, weight_c, bias_c, mean_bg, rstd_bg)
    walk = _Walk(x_bchw, mean_bg.shape[1])
    sums, products = walk.partial_sums()
    mean_g, mean_gn = walk.of_groups(), walk.of_groups()
    with launch.on(x_bchw):
        walk.sum(backward_sums_kernel, *given, sums, products, SILU=silu)
        walk.statistics(backward_statistics_kernel, sums, products, mean_g, mean_gn)
        walk.apply(backward_kernel, *given, mean_g, mean_gn, dx_bchw, SILU=silu)
    return dx_bchw


class _Walk:
    """How an image is cut, and the launches of the three passes over it."""

    def __init__(self, x_bchw: Tensor, groups: int) -> None:
        self.x, self.groups = x_bchw, groups
        self.batch, self.channels = x_bchw.shape[:2]
        self.pixels = x_bchw.shape[2] * x_bchw.shape[3]
        channels_last = memory_format(x_bchw) == torch.channels_last
        rows, cols = TILE[channels_last]
        self.tile = {"ROWS": rows, "COLS": cols, "CHANNELS_LAST": channels_last}
        self.channel_tiles = triton.cdiv(self.channels, cols)
        fewest = max(_FEWEST_PIXELS, rows)  # of a split; both are powers of two
        least = triton.next_power_of_2(triton.cdiv(self.pixels, _MOST_SPLITS))
        self.split_pixels = max(fewest, least)
        self.splits = triton.cdiv(self.pixels, self.split_pixels)
        self.shape = (self.channels, groups, self.pixels, self.split_pixels)

    def partial_sums(self) -> list[Tensor]:
        """Two uninitialised tensors (B, splits, C)."""
        size = (self.batch, self.splits, self.channels)
        return [self.x.new_empty(size, dtype=torch.float32) for _ in range(2)]

    def of_groups(self) -> Tensor:
        """An uninitialised tensor (B, G)."""
        return self.x.new_empty(self.batch, self.groups, dtype=torch.float32)

    def sum(self, kernel, *arguments, **constants) -> None:
        self._over_tiles(kernel, self.splits, arguments, constants)

    def statistics(self, kernel, *arguments) -> None:
        width = triton.next_power_of_2(self.channels // self.groups)
        kernel[(self.batch * self.groups,)](
            *arguments, *self.shape, CHUNK=CHUNK, WIDTH=width, num_warps=WARPS
        )

    def apply(self, kernel, *arguments, **constants) -> None:
        parts = triton.cdiv(self.pixels, self.tile["ROWS"])
        self._over_tiles(kernel, parts, arguments, constants)

    def _over_tiles(self, kernel, parts: int, arguments: tuple, constants: dict) -> None:
        kernel[(self.batch * parts * self.channel_tiles,)](
            *arguments, *self.shape, **self.tile, **constants, num_warps=WARPS
        )


@triton.jit
def _program(channels, pixels, part_pixels, COLS: tl.constexpr):
    """This program's sample, part of its pixels, and channels: neighbours share their pixels."""
    tiles = tl.cdiv(channels, COLS)
    parts = tl.cdiv(pixels, part_pixels)
    part = tl.program_id(0) // tiles
    return part // parts, part % parts, tl.program_id(0) % tiles * COLS + tl.arange(0, COLS)


@triton.jit
def _tile(sample, first_pixel, end_pixel, channel, channels, pixels, ROWS: tl.constexpr,
          CHANNELS_LAST: tl.constexpr):  # fmt: skip
    """Where some channels of ROWS pixels lie, and a mask."""
    start = (sample.to(tl.int64) * pixels) * channels
    rows = first_pixel + tl.arange(0, ROWS)
    mask = (rows < end_pixel)[:, None] & (channel < channels)[None, :]
    if CHANNELS_LAST:
        offsets = rows.to(tl.int64)[:, None] * channels + channel[None, :]
    else:
        offsets = rows[:, None] + channel.to(tl.int64)[None, :] * pixels
    return start + offsets, mask


@triton.jit
def _load(ptr, offsets, mask):
    return tl.load(ptr + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _of_groups(ptr, sample, channel, channels, groups):
    """What some channels find in a tensor (B, G)."""
    at = sample * groups + channel // (channels // groups)
    return tl.load(ptr + at, mask=channel < channels, other=0.0)[None, :]


@triton.jit
def _store_partial(ptr, value, sample, split, splits, channel, channels):
    row = (sample * splits + split).to(tl.int64)
    tl.store(ptr + row * channels + channel, value, mask=channel < channels)


_INTEGERS = ["groups", "pixels", "split_pixels"]


@triton.jit(do_not_specialize=_INTEGERS)
def forward_sums_kernel(
    x_ptr, mean_ptr, squares_ptr, channels, groups, pixels, split_pixels,
    ROWS: tl.constexpr, COLS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Of a split's pixels, each channel's mean and sum of squared deviations from it.

    Tile by tile (Chan et al.): nothing cancels.
    """
    sample, split, channel = _program(channels, pixels, split_pixels, COLS)
    first = split * split_pixels
    end = tl.minimum(first + split_pixels, pixels)
    mean = tl.zeros([COLS], dtype=tl.float32)
    squares = tl.zeros([COLS], dtype=tl.float32)
    for pixel in range(first, end, ROWS):
        offsets, mask = _tile(sample, pixel, end, channel, channels, pixels, ROWS, CHANNELS_LAST)
        x = _load(x_ptr, offsets, mask)
        count = tl.minimum(end - pixel, ROWS).to(tl.float32)
        before = (pixel - first).to(tl.float32)
        tile_mean = tl.sum(x, 0) / count
        deviations = tl.where(mask, x - tile_mean[None, :], 0.0)
        difference = tile_mean - mean
        share = count / (before + count)
        squares += tl.sum(deviations * deviations, 0) + difference * difference * before * share
        mean += difference * share
    splits = tl.cdiv(pixels, split_pixels)
    _store_partial(mean_ptr, mean, sample, split, splits, channel, channels)
    _store_partial(squares_ptr, squares, sample, split, splits, channel, channels)


@triton.jit
def _group_place(split, channels, groups, pixels, split_pixels, CHUNK: tl.constexpr,
                 WIDTH: tl.constexpr):  # fmt: skip
    """Where the partial sums of this program's group lie, how many pixels each is of, a mask."""
    group_channels = channels // groups
    splits = tl.cdiv(pixels, split_pixels)
    rows, cols = split + tl.arange(0, CHUNK), tl.arange(0, WIDTH)
    first_channel = tl.program_id(0) % groups * group_channels
    row = tl.program_id(0) // groups * splits + rows
    offsets = row.to(tl.int64)[:, None] * channels + (first_channel + cols)[None, :]
    mask = (rows < splits)[:, None] & (cols < group_channels)[None, :]
    counts = tl.minimum(pixels - rows * split_pixels, split_pixels).to(tl.float32)
    return offsets, tl.where(mask, counts[:, None], 0.0), mask


@triton.jit(do_not_specialize=_INTEGERS)
def forward_statistics_kernel(
    partial_mean_ptr, squares_ptr, mean_ptr, rstd_ptr, eps, channels, groups, pixels, split_pixels,
    CHUNK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Mean and 1 / standard deviation of a group (B,G) from its channels' partial sums."""
    splits = tl.cdiv(pixels, split_pixels)
    total = (channels // groups).to(tl.float32) * pixels
    mean = 0.0
    for split in range(0, splits, CHUNK):
        offsets, counts, mask = _group_place(split, channels, groups, pixels, split_pixels, CHUNK,
                                             WIDTH)  # fmt: skip
        mean += tl.sum(tl.sum(_load(partial_mean_ptr, offsets, mask) * counts, 1), 0)
    mean /= total
    squares = 0.0
    for split in range(0, splits, CHUNK):
        offsets, counts, mask = _group_place(split, channels, groups, pixels, split_pixels, CHUNK,
                                             WIDTH)  # fmt: skip
        difference = _load(partial_mean_ptr, offsets, mask) - mean
        found = _load(squares_ptr, offsets, mask) + difference * difference * counts
        squares += tl.sum(tl.sum(found, 1), 0)
    tl.store(mean_ptr + tl.program_id(0), mean)
    tl.store(rstd_ptr + tl.program_id(0), 1 / tl.sqrt(squares / total + eps))


@triton.jit(do_not_specialize=_INTEGERS)
def backward_statistics_kernel(
    sums_ptr, products_ptr, mean_g_ptr, mean_gn_ptr, channels, groups, pixels, split_pixels,
    CHUNK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Means of g and of g n over a group (B,G) from its channels' partial sums."""
    total = (channels // groups).to(tl.float32) * pixels
    mean_g = 0.0
    mean_gn = 0.0
    for split in range(0, tl.cdiv(pixels, split_pixels), CHUNK):
        offsets, _, mask = _group_place(split, channels, groups, pixels, split_pixels, CHUNK, WIDTH)
        mean_g += tl.sum(tl.sum(_load(sums_ptr, offsets, mask), 1), 0)
        mean_gn += tl.sum(tl.sum(_load(products_ptr, offsets, mask), 1), 0)
    tl.store(mean_g_ptr + tl.program_id(0), mean_g / total)
    tl.store(mean_gn_ptr + tl.program_id(0), mean_gn / total)


@triton.jit
def _normalised(x, sample, channel, channels, groups, mean_ptr, rstd_ptr):
    mean = _of_groups(mean_ptr, sample, channel, channels, groups)
    return (x - mean) * _of_groups(rstd_ptr, sample, channel, channels, groups)


@triton.jit(do_not_specialize=_INTEGERS)
def forward_kernel(
    x_ptr, y_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, channels, groups, pixels, split_pixels,
    ROWS: tl.constexpr, COLS: tl.constexpr, CHANNELS_LAST: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """A tile of y = (silu of) weight n + bias, with n the normalised x."""
    sample, part, channel = _program(channels, pixels, ROWS, COLS)
    offsets, mask = _tile(sample, part * ROWS, pixels, channel, channels, pixels, ROWS,
                          CHANNELS_LAST)  # fmt: skip
    x = _load(x_ptr, offsets, mask)
    y = _normalised(x, sample, channel, channels, groups, mean_ptr, rstd_ptr)
    y *= _load(weight_ptr, channel, channel < channels)[None, :]
    y += _load(bias_ptr, channel, channel < channels)[None, :]
    if SILU:
        y *= tl.sigmoid(y)
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _gradient(grad_ptr, x_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, sample, first_pixel,
              end_pixel, channel, channels, groups, pixels, ROWS: tl.constexpr,
              CHANNELS_LAST: tl.constexpr, SILU: tl.constexpr):  # fmt: skip
    """Of a tile: the normalised x and its gradient, where they lie, and a mask."""
    offsets, mask = _tile(sample, first_pixel, end_pixel, channel, channels, pixels, ROWS,
                          CHANNELS_LAST)  # fmt: skip
    x = _load(x_ptr, offsets, mask)
    n = _normalised(x, sample, channel, channels, groups, mean_ptr, rstd_ptr)
    weight = _load(weight_ptr, channel, channel < channels)[None, :]
    g = _load(grad_ptr, offsets, mask) * weight  # 0 outside of the mask
    if SILU:
        y = n * weight + _load(bias_ptr, channel, channel < channels)[None, :]
        gate = tl.sigmoid(y)
        g *= gate * (1 + y * (1 - gate))
    return n, g, offsets, mask


@triton.jit(do_not_specialize=_INTEGERS)
def backward_sums_kernel(
    grad_ptr, x_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, sums_ptr, products_ptr,
    channels, groups, pixels, split_pixels,
    ROWS: tl.constexpr, COLS: tl.constexpr, CHANNELS_LAST: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """Of a split's pixels, each channel's sums of g and of g n."""
    sample, split, channel = _program(channels, pixels, split_pixels, COLS)
    first = split * split_pixels
    end = tl.minimum(first + split_pixels, pixels)
    sums = tl.zeros([COLS], dtype=tl.float32)
    products = tl.zeros([COLS], dtype=tl.float32)
    for pixel in range(first, end, ROWS):
        n, g, _, _ = _gradient(grad_ptr, x_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, sample,
                               pixel, end, channel, channels, groups, pixels, ROWS, CHANNELS_LAST,
                               SILU)  # fmt: skip
        sums += tl.sum(g, 0)
        products += tl.sum(g * n, 0)
    splits = tl.cdiv(pixels, split_pixels)
    _store_partial(sums_ptr, sums, sample, split, splits, channel, channels)
    _store_partial(products_ptr, products, sample, split, splits, channel, channels)


@triton.jit(do_not_specialize=_INTEGERS)
def backward_kernel(
    grad_ptr, x_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, mean_g_ptr, mean_gn_ptr, dx_ptr,
    channels, groups, pixels, split_pixels,
    ROWS: tl.constexpr, COLS: tl.constexpr, CHANNELS_LAST: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """A tile of dx = rstd (g - mean(g) - n mean(g n))."""
    sample, part, channel = _program(channels, pixels, ROWS, COLS)
    n, g, offsets, mask = _gradient(
        grad_ptr, x_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, sample, part * ROWS, pixels,
        channel, channels, groups, pixels, ROWS, CHANNELS_LAST, SILU)  # fmt: skip
    mean_g = _of_groups(mean_g_ptr, sample, channel, channels, groups)
    mean_gn = _of_groups(mean_gn_ptr, sample, channel, channels, groups)
    dx = _of_groups(rstd_ptr, sample, channel, channels, groups) * (g - mean_g - n * mean_gn)
    tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=mask)
