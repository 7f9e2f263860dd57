"""Resampling of images and of many crops of one image: area average down, bilinear up.

One rule serves both. An output pixel reads a window of the input, centred on the output pixel, as
wide as the output pixel when shrinking and one input pixel wide when enlarging; each input pixel
counts by its overlap with the window. That is the exact area average when shrinking, bilinear
interpolation when enlarging, and continuous between them. It is separable, so each axis is one
small matrix, and crops need not begin or end at whole pixels. At whole ratios it equals
``torch.nn.functional.adaptive_avg_pool2d``.

Two matrix products, no atomics: results repeat bit for bit, forward and backward.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def resample(
    image_b3hw: Tensor,
    size: int | tuple[int, int],
    top: float = 0.0,
    left: float = 0.0,
    side: float | None = None,
) -> Tensor:
    """The square crop (top, left, side), in pixels, at ``size`` -> (B,C,size,size).

    Without ``side`` the whole image is taken, a rectangle squashed to ``size``; ``size`` may then
    be (height, width). Any number of channels. Keeps the dtype; differentiable in the image.
    Enlarging reads the neighbours of a crop up to half a pixel outside it, and repeats the image's
    border.
    """
    height, width = image_b3hw.shape[-2:]
    out_height, out_width = (size, size) if isinstance(size, int) else size
    row_span, column_span = (height, width) if side is None else (side, side)
    # Filled on the image's device: a copy from the host would wait for the device.
    scalar = functools.partial(torch.full, (1,), dtype=torch.float64, device=image_b3hw.device)
    rows = _axis_matrix(scalar(top), scalar(row_span), height, out_height)[0]
    columns = _axis_matrix(scalar(left), scalar(column_span), width, out_width)[0]
    return rows.to(image_b3hw) @ image_b3hw @ columns.to(image_b3hw).T


def resample_crops(
    image_3hw: Tensor, tops: Tensor, lefts: Tensor, sides: Tensor, size: int
) -> Tensor:
    """A square crops of one image, each at ``size`` -> (A,C,size,size).

    tops, lefts, sides: (A,) in pixels, not necessarily whole numbers, on any device. Otherwise like
    :func:`resample`.
    """
    height, width = image_3hw.shape[-2:]
    tops, lefts, sides = (x.to(image_3hw.device, non_blocking=True) for x in (tops, lefts, sides))
    rows = _axis_matrix(tops, sides, height, size).to(image_3hw)
    columns = _axis_matrix(lefts, sides, width, size).to(image_3hw)
    # One product over the rows of all crops: the image and its gradient are not repeated A times.
    high_c_as_w = rows.flatten(0, 1) @ image_3hw
    high_a_cs_w = high_c_as_w.unflatten(1, (-1, size)).transpose(0, 1).flatten(1, 2)
    return (high_a_cs_w @ columns.transpose(1, 2)).unflatten(1, (-1, size))


def _axis_matrix(starts: Tensor, lengths: Tensor, pixels: int, size: int) -> Tensor:
    """Weights (A,size,pixels) that resample [start, start + length) to ``size`` values.

    Each row sums to 1. In float64, so that crops do not depend on the precision of the image.
    """
    starts, lengths = starts.double().view(-1, 1, 1), lengths.double().view(-1, 1, 1)
    out_pixel = torch.arange(size, dtype=torch.float64, device=starts.device).view(1, -1, 1)
    in_pixel = torch.arange(pixels, dtype=torch.float64, device=starts.device).view(1, 1, -1)
    scale = lengths / size
    centre = starts + (out_pixel + 0.5) * scale
    reach = scale.clamp(min=1.0) / 2
    overlap = torch.minimum(centre + reach, in_pixel + 1) - torch.maximum(centre - reach, in_pixel)
    overlap = overlap.clamp(min=0.0)
    # A window over the image's border has lost some weight: give it to the pixels that are there.
    return overlap / overlap.sum(dim=-1, keepdim=True)
