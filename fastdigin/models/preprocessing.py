"""From an image of any shape to the square a classifier takes, as its own transform does it."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn.functional import pad

from fastdigin.errors import UserError, check_choice
from fastdigin.models.resampling import INTERPOLATIONS, resample

FITS = ("squash", "shortest", "longest", "square")


@dataclass(frozen=True)
class Resizing:
    """How the reference transform of a classifier resizes and crops.

    Args:
        fit: "squash" takes both edges to ``edge`` pixels; "shortest" and "longest" that edge,
            keeping the proportions; "square" is for networks that take images of any proportions,
            and refuses those that are not square. Then the centre is cut out at the classifier's
            size, and what a "longest" image leaves empty has the colour ``fill``.
        edge: None is the classifier's size, so that nothing is cut off; size / edge is what timm
            calls crop_pct.
        interpolation: "area" averages exactly (only with "squash" and no ``edge``; the embedded
            classifiers were trained with it), "bilinear", "bicubic" and "lanczos" are Pillow's
            filters (:func:`fastdigin.models.resampling.resample`); "nearest" is torch's way,
            "nearest-exact" Pillow's.
        fill: Three numbers in [0,1].
        odd: Where the centre begins when an odd number of pixels is cut off: "round", at the even
            one of both, as torchvision and timm do, or "floor", as transformers does.

    Raises:
        UserError: Fit or interpolation is unknown, or they do not go together.

    Example:
        >>> resizing = Resizing("shortest", edge=256, interpolation="bicubic")
        >>> resizing(torch.rand(1, 3, 300, 400), 224).shape
        torch.Size([1, 3, 224, 224])
    """

    fit: Literal["squash", "shortest", "longest", "square"] = "squash"
    edge: int | None = None
    interpolation: str = "area"
    fill: tuple[float, float, float] = (0.0, 0.0, 0.0)
    odd: Literal["round", "floor"] = "round"

    def __post_init__(self) -> None:
        check_choice("fit", self.fit, FITS)
        check_choice("odd", self.odd, ("round", "floor"))
        check_choice("interpolation", self.interpolation, INTERPOLATIONS)
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
        if self.fit == "square" and height != width:
            raise UserError(
                f"image is {width} x {height} pixels, but this classifier looks at square ones "
                "here: crop it first"
            )
        new_height, new_width = self._resized(height, width, self.edge or size)
        top, rows, above = _centre(new_height, size, self.odd)
        left, columns, before = _centre(new_width, size, self.odd)
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
        if self.fit in ("squash", "square"):
            return edge, edge
        if self.fit == "shortest":
            shorter = min(height, width)
            return int(edge * height / shorter), int(edge * width / shorter)
        ratio = max(height, width) / edge
        return round(height / ratio), round(width / ratio)


def _centre(length: int, size: int, odd: str) -> tuple[int, int, int]:
    """Where the centre of ``size`` pixels starts, how much of it exists, and the border before."""
    if length >= size:
        rest = length - size
        return rest // 2 if odd == "floor" else round(rest / 2), size, 0
    return 0, length, (size - length) // 2
