"""Pillow's resampling filters as matrices, so that a network sees what its own transform makes.

timm, open_clip, torchvision and transformers resize with Pillow, or with torch's antialiased
interpolation, which follows it: a filter of fixed shape, stretched by the ratio when shrinking,
sampled at the input pixels and normalised. Both axes are one matrix product each, so there are no
atomics and results repeat bit for bit, forward and backward.

Pillow rounds to 8 bits after each axis, which has no gradient; here nothing is rounded. Pillow
also cuts off what overshoots [0,1], and so does this.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def filter_resize(
    image_b3hw: Tensor,
    shape: tuple[int, int],
    interpolation: str,
    window: tuple[int, int, int, int],
) -> Tensor:
    """The image in [0,1] at ``shape`` (height, width), of which only ``window`` is made.

    interpolation: one of :data:`INTERPOLATIONS`. window: (top, left, height, width) in pixels of
    the resized image. Keeps the dtype; differentiable in the image.
    """
    top, left, rows, columns = window
    height, width = image_b3hw.shape[-2:]
    device = image_b3hw.device
    row_matrix = _axis_matrix(height, shape[0], interpolation, top, rows, device)
    column_matrix = _axis_matrix(width, shape[1], interpolation, left, columns, device)
    # Width first, as Pillow does it, cut off after each axis.
    wide = (image_b3hw @ column_matrix.to(image_b3hw.dtype).T).clamp(0, 1)
    return (row_matrix.to(image_b3hw.dtype) @ wide).clamp(0, 1)


def _axis_matrix(
    pixels: int, size: int, interpolation: str, first: int, count: int, device: torch.device
) -> Tensor:
    """Rows ``first`` to ``first + count`` of the (size, pixels) weights; each row sums to 1."""
    # Made on the device: a copy from the host would wait for it.
    options = {"dtype": torch.float64, "device": device}
    out_pixel = torch.arange(first, first + count, **options).view(-1, 1)
    in_pixel = torch.arange(pixels, **options).view(1, -1)
    centre = (out_pixel + 0.5) * (pixels / size)
    if pixels == size:
        return (in_pixel == out_pixel).double()
    reach, weight = _FILTERS[interpolation]
    stretch = max(pixels / size, 1.0)
    distance = ((in_pixel + 0.5 - centre) / stretch).abs()
    weights = weight(distance).masked_fill(distance >= reach, 0.0)
    return weights / weights.sum(dim=1, keepdim=True)


def _bicubic(x: Tensor) -> Tensor:
    """Keys' cubic with a = -0.5."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, far)


def _lanczos(x: Tensor) -> Tensor:
    return torch.sinc(x) * torch.sinc(x / 3)


_FILTERS: dict[str, tuple[float, Callable[[Tensor], Tensor]]] = {
    "bilinear": (1.0, lambda x: 1 - x),
    "bicubic": (2.0, _bicubic),
    "lanczos": (3.0, _lanczos),
}
INTERPOLATIONS = tuple(_FILTERS)
