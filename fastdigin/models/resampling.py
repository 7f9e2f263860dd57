"""The one way to resize images, and many crops of one image, with gradients.

Resampling is separable and linear: each axis is one small matrix, whose rows sum to 1. So crops
need not begin or end at whole pixels, and there are no atomics: results repeat bit for bit, forward
and backward.

"area" is the exact area average when shrinking, bilinear interpolation when enlarging, and
continuous between them: an output pixel reads a window of the input, centred on the output pixel,
as wide as the output pixel when shrinking and one input pixel wide when enlarging; each input pixel
counts by its overlap with the window. At whole ratios it equals
``torch.nn.functional.adaptive_avg_pool2d``.

"bilinear", "bicubic" and "lanczos" are the filters of Pillow, with which (or with torch's
antialiased interpolation, which follows it) timm, open_clip, torchvision and transformers resize: a
filter of fixed shape, stretched by the ratio when shrinking, sampled at the input pixels. Pillow
rounds to 8 bits after each axis, which has no gradient; here nothing is rounded. It also cuts off
what overshoots [0,1], and so does this. "nearest" takes the pixel that torch's interpolation of
that name takes, "nearest-exact" the one that Pillow takes.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _in_its_own_precision(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Under autocast a product of matrices would round the pixels to half precision."""

    @functools.wraps(function)
    def wrapped(image: Tensor, *arguments: Any, **options: Any) -> Tensor:
        if not torch.amp.is_autocast_available(image.device.type):
            return function(image, *arguments, **options)
        with torch.autocast(image.device.type, enabled=False):
            return function(image, *arguments, **options)

    return wrapped


@_in_its_own_precision
def resample(
    image_bchw: Tensor,
    size: int | tuple[int, int],
    interpolation: str = "area",
    box: tuple[float, float, float, float] | None = None,
) -> Tensor:
    """An image, or a box of it, at another size; differentiable in the image.

    Args:
        image_bchw: Any number of channels; in [0,1] unless the interpolation is "area".
        size: Side, or (height, width), of the result. A rectangle is squashed to a square.
        interpolation: One of :data:`INTERPOLATIONS`.
        box: (top, left, height, width) in pixels of the image, not necessarily whole numbers; None
            takes all of it. Pixels just outside count where the filter reaches them, and the
            image's border is repeated.

    Returns:
        (B,C,height,width), in the image's dtype.
    """
    height, width = image_bchw.shape[-2:]
    top, left, row_span, column_span = (0, 0, height, width) if box is None else box
    rows, columns = (size, size) if isinstance(size, int) else size
    # Filled on the image's device: a copy from the host would wait for the device.
    scalar = functools.partial(torch.full, (1,), dtype=torch.float64, device=image_bchw.device)
    row_matrix, column_matrix = (
        _axis_matrix(scalar(start), scalar(span), pixels, count, interpolation)[0].to(image_bchw)
        for start, span, pixels, count in (
            (top, row_span, height, rows), (left, column_span, width, columns)
        )
    )  # fmt: skip
    if interpolation == "area":
        return row_matrix @ image_bchw @ column_matrix.T
    # Width first, as Pillow does it, cut off after each axis.
    wide = (image_bchw @ column_matrix.T).clamp(0, 1)
    return (row_matrix @ wide).clamp(0, 1)


@_in_its_own_precision
def resample_crops(
    image_3hw: Tensor, tops: Tensor, lefts: Tensor, sides: Tensor, size: int
) -> Tensor:
    """A square crops of one image, each at ``size`` by "area" -> (A,C,size,size).

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


def _axis_matrix(
    starts: Tensor, lengths: Tensor, pixels: int, size: int, interpolation: str = "area"
) -> Tensor:
    """Weights (A,size,pixels) that resample [start, start + length) to ``size`` values.

    In float64, so that crops do not depend on the precision of the image.
    """
    starts, lengths = starts.double().view(-1, 1, 1), lengths.double().view(-1, 1, 1)
    out_pixel = torch.arange(size, dtype=torch.float64, device=starts.device).view(1, -1, 1)
    in_pixel = torch.arange(pixels, dtype=torch.float64, device=starts.device).view(1, 1, -1)
    scale = lengths / size
    centre = starts + (out_pixel + 0.5) * scale
    stretch = scale.clamp(min=1.0)
    if interpolation == "area":
        low, high = centre - stretch / 2, centre + stretch / 2
        weights = torch.minimum(high, in_pixel + 1) - torch.maximum(low, in_pixel)
        weights = weights.clamp(min=0.0)
    elif interpolation.startswith("nearest"):
        taken = centre if interpolation == "nearest-exact" else centre - scale / 2
        weights = (in_pixel == taken.floor()).double()
    else:
        reach, weight = _FILTERS[interpolation]
        distance = ((in_pixel + 0.5 - centre) / stretch).abs()
        weights = weight(distance).masked_fill(distance >= reach, 0.0)
    # A window over the image's border has lost some weight: give it to the pixels that are there.
    return weights / weights.sum(dim=-1, keepdim=True)


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
INTERPOLATIONS = ("area", *_FILTERS, "nearest", "nearest-exact")
