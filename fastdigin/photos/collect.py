"""From what users name (files, folders, tables, data sets) to ImageInputs. No image is opened."""

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from fastdigin import datasets
from fastdigin.datasets.layout import SUFFIXES, entries, images_of
from fastdigin.errors import UserError
from fastdigin.photos.pixels import ImageInput, Images, pixels_of
from fastdigin.photos.tables import TABLE_SUFFIXES, read_table

log = logging.getLogger(__name__)

TABLE_COLUMNS = (
    "image", "id", "prompt", "source", "target", "mask", "background", "caption", "source_word",
    "target_word",
)  # fmt: skip


def collect(
    arguments: Sequence[str | Path] | str | Path, limit: int | None = None
) -> list[ImageInput]:
    """Inputs from command-line arguments: files, folders, tables, data sets, packaged photos.

    A folder means its images in alphabetical order; a table is a CSV with a header, a JSONL or a
    Parquet file with the columns of TABLE_COLUMNS (only ``image`` is needed; paths are relative to
    the table). A data set is ``imagenet:PATH`` or another of ``fastdigin.datasets.LAYOUTS``;
    ``embedded:photos|pairs`` come with the package. No image is opened.

    Args:
        arguments: any of these, or one of them.
        limit: how many inputs at most; None takes all.

    Returns:
        The inputs, in the order of the arguments.

    Raises:
        UserError: a name means nothing, or no image is left.

    Example:
        >>> photos = fd.collect(["photos/", "more.csv"], limit=100)
    """
    found: list[ImageInput] = []
    for given in [arguments] if isinstance(arguments, (str, Path)) else arguments:
        if not isinstance(given, (str, Path)):
            raise UserError(f"{given!r:.80} is no name of images: write a text or a Path")
        argument = str(given)
        if argument.startswith("embedded:"):
            found += _embedded(argument)
        elif datasets.is_dataset(argument):
            found += _dataset(argument)
        elif os.path.isdir(argument):
            found += _folder(Path(argument))
        elif Path(argument).suffix.lower() in TABLE_SUFFIXES:
            found += _table(Path(argument))
        else:
            found.append(ImageInput(Path(argument).stem, Path(argument)))
    if not found:
        raise UserError(
            "no images were given: name files, a folder, a table, a data set or embedded:photos"
        )
    return found[:limit]


def as_inputs(
    images: Images | ImageInput | str | Path | Tensor | Image.Image | np.ndarray,
) -> list[ImageInput]:
    """Inputs from what callers of the library pass: many images, or a single one."""
    single = isinstance(images, (Tensor, np.ndarray)) and images.ndim < 4
    if single or isinstance(images, (ImageInput, str, Path, Image.Image)):
        images = [images]
    if not isinstance(images, Iterable):
        raise UserError(f"images is {images!r:.80}: give files, pictures, arrays or tensors")
    inputs = []
    for number, image in enumerate(images):
        if isinstance(image, ImageInput):
            held = isinstance(image.image, (Image.Image, np.ndarray))
            inputs.append(replace(image, image=pixels_of(image.image)) if held else image)
        elif isinstance(image, (Image.Image, np.ndarray, Tensor)):
            try:
                inputs.append(ImageInput(f"image-{number:03d}", pixels_of(image)))
            except ValueError as error:
                raise UserError(f"picture {number} of images cannot be read: {error}") from None
        else:
            inputs += collect([str(image)])
    if not inputs:
        raise UserError("images is empty: name at least one")
    return inputs


def one_each(value: Any, name: str, count: int) -> list:
    """``count`` values from one for all, or from one each."""
    single = isinstance(value, (str, bytes)) or not isinstance(value, Iterable)
    single |= getattr(value, "ndim", 1) == 0  # a number of torch or NumPy
    values = [value] if single else list(value)
    if len(values) not in (1, count):
        raise UserError(f"{len(values)} {name} for {count} images: give one, or one each")
    return values * count if len(values) == 1 else values


def distinct(ids: Iterable[str]) -> list[str]:
    """The ids in order, the second of the same name called NAME-2: ids name results."""
    taken: dict[str, None] = {}
    last_number: dict[str, int] = {}
    for id in ids:
        unique, number = id, last_number.get(id, 1)
        while unique in taken:
            number += 1
            unique = f"{id}-{number}"
        last_number[id] = number
        taken[unique] = None
    return list(taken)


def _embedded(argument: str) -> list[ImageInput]:
    from fastdigin import embedded

    if argument == "embedded:photos":
        known = [(p, p.prompt, p.garment, None) for p in embedded.photos()]
    elif argument == "embedded:pairs":
        known = [(p.photo, p.prompt, p.source, p.target) for p in embedded.pairs()]
    else:
        raise UserError(f"{argument!r} does not exist: write embedded:photos or embedded:pairs")
    return [
        ImageInput(photo.id, photo.path, prompt, source, target, background=photo.background)
        for photo, prompt, source, target in known
    ]


def _folder(folder: Path) -> list[ImageInput]:
    files = images_of(folder)
    if not files:
        raise UserError(f"folder '{folder}' holds no images ({', '.join(sorted(SUFFIXES))})")
    others = [path for path in set(entries(folder)).difference(files) if path.is_file()]
    kinds = {path.suffix.lower() for path in others if not path.name.startswith(".")}
    if kinds:
        log.warning("folder '%s': files of other kinds are left out (%s)", folder,
                    ", ".join(sorted(kind or "no suffix" for kind in kinds)))  # fmt: skip
    return [ImageInput(f.stem, f) for f in files]


def _table(path: Path) -> list[ImageInput]:
    inputs = []
    for given in read_table(path, TABLE_COLUMNS, needed="image"):
        file = path.parent / given.pop("image")
        mask = path.parent / given.pop("mask") if "mask" in given else None
        inputs.append(ImageInput(given.pop("id", file.stem), file, mask=mask, **given))
    return inputs


def _dataset(argument: str) -> list[ImageInput]:
    return [
        ImageInput(p.id, p.path, datasets.PROMPT, p.source, p.target, crop=True)
        for p in datasets.photos(argument)
    ]
