"""Published data sets, read where they lie: ``imagenet:PATH``, ``cub:PATH`` and so on.

Only names are read at first; a picture is opened when its turn comes. Every input knows its class
(as ``source``) and has the prompt "a photograph of a {}", which takes the class's name.
"""

import os
from collections.abc import Callable
from pathlib import Path

from fastdigin.datasets.folders import cars, cub, ffhq, food101, image_folder
from fastdigin.datasets.imagenet import imagenet, imagenet_pairs
from fastdigin.datasets.layout import Photo
from fastdigin.errors import UserError

PROMPT = "a photograph of a {}"

LAYOUTS: dict[str, Callable[[Path], list[Photo]]] = {
    "imagefolder": image_folder,
    "imagenet": imagenet,
    "imagenet-pairs": imagenet_pairs,
    "cub": cub,
    "cars": cars,
    "food101": food101,
    "ffhq": ffhq,
}
"""What may stand before the colon; each reader says which files it expects."""


def is_dataset(argument: str) -> bool:
    """Whether ``argument`` names one of LAYOUTS."""
    return argument.partition(":")[0] in LAYOUTS and ":" in argument


def photos(argument: str) -> list[Photo]:
    """The photos of ``LAYOUT:PATH``, none of them opened.

    Raises UserError where the folder does not have the layout's files.
    """
    kind, _, path = argument.partition(":")
    if not is_dataset(argument):
        raise UserError(
            f"data set {argument!r} is not understood: write LAYOUT:PATH, where LAYOUT is one of "
            f"{', '.join(LAYOUTS)}"
        )
    folder = Path(os.path.expanduser(path))
    if not path or not os.path.isdir(folder):
        raise UserError(f"data set {argument!r}: '{path}' is not a folder")
    try:
        found = LAYOUTS[kind](folder)
    except UserError:
        raise
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"data set {argument!r}: its lists of photos and classes are not as published "
            f"({type(error).__name__}: {error}): fetch them again"
        ) from error
    if not found:
        raise UserError(f"data set {argument!r} holds no photos: check the folder")
    return found


def class_names(argument: str) -> list[str]:
    """The classes that occur in a data set, in the order of its photos."""
    return list(dict.fromkeys(p.name for p in photos(argument) if p.name is not None))
