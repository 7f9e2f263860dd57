"""Pictures as files, and the picture of a change."""

import io
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""The image formats that are read: Pillow would give EPS and PDF to Ghostscript, a program that
files can command.
"""

MEANINGS = {
    "unchanged": (22, 24, 30),
    "brighter": (255, 176, 64),
    "darker": (72, 156, 255),
    "another colour": (226, 226, 232),
}
"""The difference picture's colours. A dark middle keeps unchanged regions quiet on any page."""

FULL_SCALE = 0.4
_LUMA = (0.299, 0.587, 0.114)


def difference_picture(before: Tensor, after: Tensor) -> Tensor:
    """What changed from ``before`` to ``after``, both (3,H,W) in [0,1], as a (3,H,W) picture.

    Intensity is the size of the change (root mean square over the channels): dark where nothing
    changed, full from FULL_SCALE on. Hue is its direction: orange where the image became
    brighter, blue where it became darker, pale where the colour changed at equal brightness. The
    scale is fixed, so pictures of different jobs can be compared.
    """
    change = (after.cpu() - before.cpu()).detach().float()
    size = change.square().mean(0).sqrt()
    # Luma in [-size, size] up to a factor; the quotient is a direction and free of the size.
    brightness = torch.einsum("chw,c->hw", change, change.new_tensor(_LUMA))
    direction = (brightness / size.clamp_min(1e-6)).clamp(-1, 1)
    unchanged, brighter, darker, recoloured = (
        change.new_tensor(colour)[:, None, None] / 255 for colour in MEANINGS.values()
    )
    towards = torch.where(direction > 0, brighter, darker)
    hue = recoloured + (towards - recoloured) * direction.abs()
    return unchanged + (hue - unchanged) * (size / FULL_SCALE).clamp(0, 1)


def to_pil(image: Tensor) -> Image.Image:
    """An image or a mask as a picture of 8 bits.

    Args:
        image: an image (3,H,W), or a mask (H,W) or (1,H,W), in [0,1]. NaN becomes black.

    Returns:
        The picture, in colour or in grey.

    Raises:
        ValueError: a tensor of another shape.

    Example:
        >>> fd.to_pil(record.image).save("after.png")
    """
    if image.ndim == 3 and image.shape[0] == 1:
        image = image[0]
    if image.ndim != 2 and (image.ndim != 3 or image.shape[0] != 3):
        raise ValueError(f"expected an image (3,H,W) or a mask (H,W), got {tuple(image.shape)}")
    pixels = image.detach().float().nan_to_num(0.0).clamp(0, 1).mul(255).round().byte().cpu()
    if pixels.ndim == 3:
        pixels = pixels.permute(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(pixels.numpy()))


def png(picture: Image.Image) -> bytes:
    """The content of a PNG file."""
    content = io.BytesIO()
    picture.save(content, format="PNG")
    return content.getvalue()


def open_image(path: Path) -> Image.Image:
    """The picture in a file of FORMATS, decoded. OSError for whatever is wrong with it."""
    # A pipe or a device could be read for ever.
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError("it is no regular file")
    try:
        with Image.open(path, formats=FORMATS) as image:
            _check_transparent_colour(image)
            image.load()
    except UnidentifiedImageError:
        raise OSError(f"it is none of {', '.join(FORMATS)}") from None
    except FileNotFoundError:
        raise
    except Exception as error:  # decoders of damaged files raise whatever they stumble over
        raise OSError(str(error) or type(error).__name__) from error
    return image


def _check_transparent_colour(image: Image.Image) -> None:
    """OSError where Pillow would compare a PNG's transparent colour with pixels of other depth."""
    raw = image.tile[0][3] if image.format == "PNG" and image.tile else ""
    if "transparency" in image.info and ";" in str(raw) and image.mode != "P":
        raise OSError(f"its transparent colour is of the depth {raw}, which is not read")


def read_picture(path: Path) -> Tensor:
    """What ``to_pil`` made a file of: (3, H, W), or (H, W) for a grey one, in [0, 1]."""
    picture = open_image(path)
    grey = picture.mode == "L"
    pixels = np.asarray(picture if grey else picture.convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(pixels if grey else pixels.transpose(2, 0, 1).copy())
