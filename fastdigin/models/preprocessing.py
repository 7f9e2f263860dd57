"""From an image of any shape to the square a classifier takes, as its own transform does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn.functional import pad

from fastdigin.errors import UserError
from fastdigin.models.resampling import INTERPOLATIONS, resample

FITS = ("squash", "shortest", "longest")


@dataclass(frozen=True)
class Resizing:
    """How the reference transform of a classifier resizes and crops.

    Args:
        fit: "squash" takes both edges to ``edge`` pixels; "shortest" and "longest" that edge,
            keeping the proportions. Then the centre is cut out at the classifier's size, and what a
            "longest" image leaves empty has the colour ``fill``.
        edge: None is the classifier's size, so that nothing is cut off; size / edge is what timm
            calls crop_pct.
        interpolation: "area" averages exactly (only with "squash" and no ``edge``; the embedded
            classifiers were trained with it), "bilinear", "bicubic" and "lanczos" are Pillow's
            filters (:func:`fastdigin.models.resampling.resample`).
        fill: Three numbers in [0,1].

    Raises:
        UserError: Fit or interpolation is unknown, or they do not go together.

    Example:
        >>> resizing = Resizing("shortest", edge=256, interpolation="bicubic")
        >>> resizing(torch.rand(1, 3, 300, 400), 224).shape
        torch.Size([1, 3, 224, 224])
    """

    fit: Literal["squash", "shortest", "longest"] = "squash"
    edge: int | None = None
    interpolation: str = "area"
    fill: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise UserError(f"fit must be one of {', '.join(FITS)}, got {self.fit!r}")
        if self.interpolation not in INTERPOLATIONS:
            raise UserError(
                f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got "
                f"{self.interpolation!r}"
            )
        if self.interpolation == "area" and (self.fit != "squash" or self.edge is not None):
            raise UserError(
                f"interpolation 'area' goes with fit 'squash' and no edge, got {self.fit!r} and "
                f"{self.edge}: choose bilinear, bicubic or lanczos"
            )

    def __call__(self, images_b3hw: Tensor, size: int) -> Tensor:
        """(B,3,size,size) of images in [0,1]; differentiable, same dtype."""
        if self.interpolation == "area":
            return resample(images_b3hw, size)
        height, width = images_b3hw.shape[-2:]
        new_height, new_width = self._resized(height, width, self.edge or size)
        top, rows, above = _centre(new_height, size)
        left, columns, before = _centre(new_width, size)
        # What is kept of the resized image, in pixels of the image as it is.
        down, across = height / new_height, width / new_width
        box = (top * down, left * across, rows * down, columns * across)
        resized = resample(images_b3hw, (rows, columns), self.interpolation, box)
        if (rows, columns) == (size, size):
            return resized
        borders = (before, size - columns - before, above, size - rows - above)
        fill_311 = resized.new_tensor(self.fill).view(3, 1, 1)
        return pad(resized - fill_311, borders) + fill_311

    def _resized(self, height: int, width: int, edge: int) -> tuple[int, int]:
        """Height and width after resizing, rounded as torchvision and timm round them."""
        if self.fit == "squash":
            return edge, edge
        if self.fit == "shortest":
            shorter = min(height, width)
            return int(edge * height / shorter), int(edge * width / shorter)
        ratio = max(height, width) / edge
        return round(height / ratio), round(width / ratio)


def _centre(length: int, size: int) -> tuple[int, int, int]:
    """Where the centre of ``size`` pixels starts, how much of it exists, and the border before."""
    if length >= size:
        return round((length - size) / 2), size, 0
    return 0, length, (size - length) // 2
