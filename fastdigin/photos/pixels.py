"""Photos with what their users say of them, and the pixels of photos and masks."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fastdigin.errors import UserError
from fastdigin.models.resampling import resample
from fastdigin.results.pictures import open_image
from fastdigin.storage import fingerprint

BITS, PHOTOMETRIC, SIGN = 258, 262, 339
"""Tags of a TIFF: bits a sample, what its values mean, and whether they are signed (2)."""


@dataclass(frozen=True)
class ImageInput:
    """One image and what is known of it.

    Args:
        id: names its results.
        image: a file (BMP, GIF, JPEG, PNG, PPM, TIFF or WebP), or a tensor (3, H, W) in [0, 1].
        prompt: describes the image; "{}" in it stands for the word of the source.
        source, target: class names.
        mask: the user's own foreground mask, a file or a tensor (H, W) in [0, 1].
        background: the phrase of the prompt that names the background (for neuron counterfactuals).
        crop: takes the middle of an image that is not square, which is refused otherwise.
        caption: what else the image shows; it is added to the prompt, as far as the text encoder
            has room for it.
        source_word, target_word: the words of the prompts for source and target, where they are
            other words than the names of the classes.

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
    source_word: str | None = None
    target_word: str | None = None

    def fingerprint(self) -> str | None:
        """Tells whether an id still means the same input; None where a file cannot be read."""
        files = [Path(x) for x in (self.image, self.mask) if isinstance(x, (str, Path))]
        try:
            if not all(file.is_file() for file in files):  # a pipe could be read for ever
                return None
            image, mask = (
                Path(x).read_bytes() if isinstance(x, (str, Path)) else x
                for x in (self.image, self.mask)
            )
        except OSError:
            return None
        target = self.target_word and f"to {self.target_word}"
        also = ("crop" if self.crop else None, self.caption, self.source_word, target)
        also = [part for part in also if part]
        return fingerprint(image, self.prompt, self.source, self.background, mask, *also)


Images = Iterable[ImageInput | str | Path | Tensor | Image.Image | np.ndarray]


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
        image = _read(item.image, label, "RGB")
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
        mask = _read(item.mask, label, "L")
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


def _read(path: Path, label: str, mode: Literal["RGB", "L"]) -> Tensor:
    try:
        return to_tensor(open_image(Path(path)), mode)
    except FileNotFoundError:
        raise UserError(f"{label} does not exist: check the path") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{label} cannot be read as an image ({error}): save it as PNG") from None


def to_tensor(image: Image.Image, mode: Literal["RGB", "L"] = "RGB") -> Tensor:
    """A picture as (3, H, W), or as (H, W) for mode "L"; black is 0 and white is 1 in every depth.

    Raises ValueError where that is not known: for 32-bit integers, floats outside [0, 1], and modes
    that Pillow cannot convert.
    """
    white = _white(image)
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # of any kind, as decoders raise
        raise ValueError(f"its pixels or its Exif data are damaged: {error}") from None
    if white is not None:
        grey = torch.from_numpy((np.asarray(image) / white).astype(np.float32))
        if not ((grey >= 0) & (grey <= 1)).all():
            raise ValueError(f"its values of mode {image.mode} are outside [0, {white:g}]")
        return grey.repeat(3, 1, 1) if mode == "RGB" else grey
    if mode == "RGB" and image.has_transparency_data:  # a cut-out stands on white, as in any viewer
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = torch.from_numpy(np.asarray(image.convert(mode), dtype=np.float32) / 255)
    return pixels.permute(2, 0, 1).contiguous() if mode == "RGB" else pixels


def _white(image: Image.Image) -> float | None:
    """What white is in a mode deeper than 8 bits: Pillow itself would cut its values at 255."""
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    if image.mode != "F" and not image.mode.startswith("I"):
        if 2 in tags.get(SIGN, ()):
            raise ValueError("its integers are signed, and do not say what black is")
        return None
    if tags.get(PHOTOMETRIC) == 0:
        raise ValueError(f"its mode {image.mode} has white at 0")
    if image.mode == "F":
        return 1.0
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        raise ValueError("its integers of 32 bits do not say what white is")
    return 2.0 ** tags.get(BITS, (16,))[0] - 1


def pixels_of(image: Image.Image | np.ndarray | Tensor) -> Tensor:
    """(3, H, W) in [0, 1] of what callers hold: the bytes that its file would give.

    An array is (H, W, 3), (H, W, 4) or (H, W), of 8 bits or of floats in [0, 1]. A tensor is
    (3, H, W) already. Raises UserError for any other array.
    """
    if isinstance(image, Tensor):
        return image
    if isinstance(image, Image.Image):
        return to_tensor(image)
    shape_fits = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4))
    if not shape_fits or (image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating)):
        raise UserError(
            f"image is an array of {image.dtype} {image.shape}: give (H, W, 3), of uint8 or of "
            "floats in [0, 1]"
        )
    if image.dtype == np.uint8:
        return to_tensor(Image.fromarray(image.squeeze(2) if image.shape[2:] == (1,) else image))
    pixels = torch.from_numpy(image.astype(np.float32)).reshape(*image.shape[:2], -1)
    if pixels.shape[2] == 4:
        raise UserError("image is an array of floats with transparency: give (H, W, 3)")
    return pixels.permute(2, 0, 1).expand(3, -1, -1).contiguous()
