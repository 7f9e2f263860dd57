"""Photos with what their users say of them, and the pixels of photos and masks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from fastdigin.errors import UserError
from fastdigin.models.resampling import resample
from fastdigin.storage import fingerprint


@dataclass(frozen=True)
class ImageInput:
    """One image and what is known of it.

    Args:
        id: names its results.
        image: a file, or a tensor (3, H, W) in [0, 1].
        prompt: describes the image; "{}" in it stands for the word of the source.
        source, target: class names.
        mask: the user's own foreground mask, a file or a tensor (H, W) in [0, 1].
        background: the phrase of the prompt that names the background (for neuron counterfactuals).
        crop: takes the middle of an image that is not square, which is refused otherwise.
        caption: what else the image shows; it is added to the prompt, as far as the text encoder
            has room for it.

    Example:
        >>> fd.ImageInput("tom", Path("tom.png"), prompt="a photo of a {}", source="tabby")
    """

    id: str
    image: Path | Tensor
    prompt: str | None = None
    source: str | None = None
    target: str | None = None
    mask: Path | Tensor | None = None
    background: str | None = None
    crop: bool = False
    caption: str | None = None

    def fingerprint(self) -> str | None:
        """Tells whether an id still means the same input; None where a file cannot be read."""
        try:
            image, mask = (
                Path(x).read_bytes() if isinstance(x, (str, Path)) else x
                for x in (self.image, self.mask)
            )
        except OSError:
            return None
        also = [part for part in ("crop" if self.crop else None, self.caption) if part]
        return fingerprint(image, self.prompt, self.source, self.background, mask, *also)


Images = Iterable[ImageInput | str | Path | Tensor | Image.Image]


def read_image(item: ImageInput, size: int) -> Tensor:
    """(3, size, size) in [0, 1]. UserError for a missing, broken, non-square or tiny image."""
    image, label = read_any_image(item), _label(item)
    height, width = image.shape[-2:]
    if height != width:
        raise UserError(
            f"{label} is {width} x {height} pixels, not square: crop it first, or ask for --crop "
            "(crop=True), which takes the middle"
        )
    if height < size // 2:
        raise UserError(
            f"{label} is {width} x {height} pixels, too small for a model of {size} px: use one "
            f"of at least {size // 2} px"
        )
    return image if height == size else resample(image[None], size)[0]


def read_any_image(item: ImageInput) -> Tensor:
    """(3, H, W) in [0, 1], of any height and width. UserError for a missing or broken image."""
    label = _label(item)
    if isinstance(item.image, Tensor):
        image = item.image
        if image.ndim != 3 or len(image) != 3:
            raise UserError(f"{label} has shape {tuple(image.shape)}, wanted (3, H, W)")
        if not image.is_floating_point():
            raise UserError(f"{label} is {image.dtype}: make it float, divide 8-bit values by 255")
        image = image.detach().to(torch.promote_types(image.dtype, torch.float32))
        if not ((image >= 0) & (image <= 1)).all():
            raise UserError(f"{label} has values outside [0, 1]")
    else:
        image = to_tensor(_open(item.image, label))
    return _middle(image) if item.crop else image


def read_images(items: Iterable[ImageInput], size: int) -> list[Tensor]:
    """A data set: every image must be good."""
    return [read_image(item, size) for item in items]


def readable_images(items: Iterable[ImageInput], size: int) -> Iterator[Tensor]:
    """Those images that are good, one at a time."""
    for item in items:
        with contextlib.suppress(UserError):
            yield read_image(item, size)


def read_mask(item: ImageInput, size: int) -> Tensor | None:
    """The user's own mask as (size, size) in [0, 1], or None."""
    if item.mask is None:
        return None
    if isinstance(item.mask, Tensor):
        mask, label = item.mask.float(), f"mask of {item.id!r}"
        if mask.ndim != 2 or not ((mask >= 0) & (mask <= 1)).all():
            raise UserError(f"{label} must be (H, W) in [0, 1], got shape {tuple(mask.shape)}")
    else:
        label = f"mask '{item.mask}'"
        mask = torch.from_numpy(np.asarray(_open(item.mask, label).convert("L")) / np.float32(255))
    mask = _middle(mask) if item.crop else mask
    height, width = mask.shape
    if height != width:
        raise UserError(f"{label} is {width} x {height} pixels, not square: crop it as the image")
    if not (mask > 0.5).any():
        raise UserError(
            f"{label} is empty: it must be white (255 in a file, 1 in a tensor) where the object is"
        )
    return resample(mask[None, None], size)[0, 0]


def _label(item: ImageInput) -> str:
    return f"image {item.id!r}" if isinstance(item.image, Tensor) else f"image '{item.image}'"


def _middle(image: Tensor) -> Tensor:
    """The middle square of (..., H, W)."""
    height, width = image.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[..., top : top + side, left : left + side]


def _open(path: Path, label: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return _eight_bits(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise UserError(f"{label} does not exist: check the path") from None
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{label} cannot be read as an image ({error}): save it as PNG") from None


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey; Pillow's own conversion turns all above 255 into white."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))


def to_tensor(image: Image.Image) -> Tensor:
    image = _eight_bits(image)
    if image.has_transparency_data:  # a cut-out stands on white, as in any viewer
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
