"""What users give: image files, folders, tables; read and checked before any work starts."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from fastdigin.errors import UserError
from fastdigin.models.resampling import resample

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
TABLE_SUFFIXES = {".csv", ".jsonl"}
TABLE_COLUMNS = ("image", "id", "prompt", "source", "target", "mask")


@dataclass(frozen=True)
class ImageInput:
    """One image and what is known of it.

    image: a file, or a tensor (3, H, W) in [0, 1]. prompt: describes the image. source, target:
    class names. mask: the user's own foreground mask, a file or a tensor (H, W) in [0, 1].
    """

    id: str
    image: Path | Tensor
    prompt: str | None = None
    source: str | None = None
    target: str | None = None
    mask: Path | Tensor | None = None


def collect(arguments: Sequence[str], limit: int | None = None) -> list[ImageInput]:
    """Inputs from command-line arguments: files, folders, tables, ``embedded:photos|pairs``.

    A folder means its images in alphabetical order; a table is a CSV with a header or a JSONL,
    with the columns of TABLE_COLUMNS (only ``image`` is needed; paths are relative to the table).
    Raises UserError for names that mean nothing and where no image is left.
    """
    found: list[ImageInput] = []
    for argument in arguments:
        if argument.startswith("embedded:"):
            found += _embedded(argument)
        elif Path(argument).is_dir():
            found += _folder(Path(argument))
        elif Path(argument).suffix.lower() in TABLE_SUFFIXES:
            found += _table(Path(argument))
        else:
            found.append(ImageInput(Path(argument).stem, Path(argument)))
    if not found:
        raise UserError("no images were given: name files, a folder, a table or embedded:photos")
    return _distinct(found[:limit])


def as_inputs(images: Iterable[ImageInput | str | Path | Tensor | Image.Image]) -> list[ImageInput]:
    """Inputs from what callers of the library pass."""
    inputs = []
    for number, image in enumerate(images):
        if isinstance(image, ImageInput):
            inputs.append(image)
        elif isinstance(image, Image.Image):
            inputs.append(ImageInput(f"image-{number:03d}", _to_tensor(image)))
        elif isinstance(image, Tensor):
            inputs.append(ImageInput(f"image-{number:03d}", image))
        else:
            inputs += collect([str(image)])
    return _distinct(inputs)


def read_image(item: ImageInput, size: int) -> Tensor:
    """(3, size, size) in [0, 1]. UserError for a missing, broken, non-square or tiny image."""
    if isinstance(item.image, Tensor):
        image, label = item.image, f"image {item.id!r}"
        if image.ndim != 3 or len(image) != 3:
            raise UserError(f"{label} has shape {tuple(image.shape)}, wanted (3, H, W)")
        if not (image.isfinite().all() and image.min() >= 0 and image.max() <= 1):
            raise UserError(f"{label} has values outside [0, 1]: divide 8-bit values by 255")
    else:
        label = f"image '{item.image}'"
        image = _to_tensor(_open(item.image, label))
    height, width = image.shape[-2:]
    if height != width:
        raise UserError(f"{label} is {width} x {height} pixels, not square: crop it first")
    if height < size // 2:
        raise UserError(
            f"{label} is {width} x {height} pixels, too small for a model of {size} px: use one "
            f"of at least {size // 2} px"
        )
    return image if height == size else resample(image[None], size)[0]


def read_mask(item: ImageInput, size: int) -> Tensor | None:
    """The user's own mask as (size, size) in [0, 1], or None."""
    if item.mask is None:
        return None
    if isinstance(item.mask, Tensor):
        mask, label = item.mask.float(), f"mask of {item.id!r}"
        if mask.ndim != 2 or mask.min() < 0 or mask.max() > 1:
            raise UserError(f"{label} must be (H, W) in [0, 1], got shape {tuple(mask.shape)}")
    else:
        label = f"mask '{item.mask}'"
        mask = torch.from_numpy(np.asarray(_open(item.mask, label).convert("L")) / np.float32(255))
    if mask.max() == 0:
        raise UserError(f"{label} is empty: it must be white where the object is")
    return resample(mask[None, None], size)[0, 0]


def _open(path: Path, label: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise UserError(f"{label} does not exist: check the path") from None
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{label} cannot be read as an image ({error}): save it as PNG") from None


def _to_tensor(image: Image.Image) -> Tensor:
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _embedded(argument: str) -> list[ImageInput]:
    from fastdigin import embedded

    if argument == "embedded:photos":
        return [
            ImageInput(p.id, p.path, prompt=p.prompt, source=p.garment) for p in embedded.photos()
        ]
    if argument == "embedded:pairs":
        return [
            ImageInput(p.photo.id, p.photo.path, p.prompt, p.source, p.target)
            for p in embedded.pairs()
        ]
    raise UserError(f"{argument!r} does not exist: write embedded:photos or embedded:pairs")


def _folder(folder: Path) -> list[ImageInput]:
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise UserError(f"folder '{folder}' holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return [ImageInput(f.stem, f) for f in files]


def _table(path: Path) -> list[ImageInput]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".csv":
            rows = list(csv.DictReader(text.splitlines()))
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"table '{path}' cannot be read: {error}") from None
    inputs = []
    for number, row in enumerate(rows, start=1):
        unknown = sorted(set(row) - set(TABLE_COLUMNS)) if isinstance(row, dict) else ["?"]
        if unknown or not row.get("image"):
            problem = f"unknown column {unknown[0]!r}" if unknown else "no image"
            raise UserError(
                f"table '{path}', row {number}: {problem}; the columns are "
                f"{', '.join(TABLE_COLUMNS)}, of which image is needed"
            )
        file = path.parent / row["image"]
        mask = path.parent / row["mask"] if row.get("mask") else None
        words = {key: row.get(key) or None for key in ("prompt", "source", "target")}
        inputs.append(ImageInput(str(row.get("id") or file.stem), file, mask=mask, **words))
    if not inputs:
        raise UserError(f"table '{path}' has no rows")
    return inputs


def _distinct(inputs: list[ImageInput]) -> list[ImageInput]:
    """Ids and targets name results, so two inputs may not share both: the second is ID-2."""
    seen: dict[tuple[str, str | None], int] = {}
    distinct = []
    for item in inputs:
        count = seen[item.id, item.target] = seen.get((item.id, item.target), 0) + 1
        distinct.append(item if count == 1 else replace(item, id=f"{item.id}-{count}"))
    return distinct
