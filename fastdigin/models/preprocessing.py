"""From an image of any shape to the square a classifier takes, as its own transform does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn.functional import pad

from fastdigin.errors import UserError
from fastdigin.models.filters import INTERPOLATIONS, filter_resize
from fastdigin.models.resampling import resample

FITS = ("squash", "shortest", "longest")


@dataclass(frozen=True)
class Resizing:
    """How the reference transform of a classifier resizes and crops.

    fit: "squash" takes both edges to ``edge`` pixels; "shortest" and "longest" that edge, keeping
        the proportions. Then the centre is cut out at the classifier's size, and what a "longest"
        image leaves empty has the colour ``fill``.
    edge: None is the classifier's size, so that nothing is cut off; size / edge is what timm calls
        crop_pct.
    interpolation: "area" averages exactly (:func:`fastdigin.models.resampling.resample`, only with
        "squash" and no ``edge``; the embedded classifiers were trained with it), the others are
        Pillow's filters.
    fill: three numbers in [0,1].

    Raises UserError for an unknown fit or interpolation.
    """

    fit: Literal["squash", "shortest", "longest"] = "squash"
    edge: int | None = None
    interpolation: str = "area"
    fill: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise UserError(f"fit must be one of {', '.join(FITS)}, got {self.fit!r}")
        if self.interpolation not in ("area", *INTERPOLATIONS):
            raise UserError(
                f"interpolation must be area or one of {', '.join(INTERPOLATIONS)}, got "
                f"{self.interpolation!r}"
            )
        if self.interpolation == "area" and (self.fit != "squash" or self.edge is not None):
            raise UserError("interpolation 'area' goes with fit 'squash' and without an edge")

    def __call__(self, images_b3hw: Tensor, size: int) -> Tensor:
        """(B,3,size,size) of images in [0,1]; differentiable, same dtype."""
        if self.interpolation == "area":
            return resample(images_b3hw, size)
        height, width = self._resized(*images_b3hw.shape[-2:], self.edge or size)
        top, rows, above = _centre(height, size)
        left, columns, before = _centre(width, size)
        resized = filter_resize(
            images_b3hw, (height, width), self.interpolation, (top, left, rows, columns)
        )
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
