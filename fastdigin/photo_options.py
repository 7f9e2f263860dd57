"""The options of the commands that edit photos, and what they load."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes seconds, and --help needs none of it
    from fastdigin.models.diffusion import LatentDiffusion
    from fastdigin.tasks.sources import PhotoTools


def add_photo_options(parser: argparse.ArgumentParser) -> None:
    """What photos show, and how they are prepared."""
    parser.add_argument(
        "--source", metavar="CLASS", help="what the image shows (default: asks the classifier)"
    )
    parser.add_argument(
        "--prompt", metavar="TEXT", help="describes the image, names the source or has {} for it"
    )
    parser.add_argument(
        "--inversion", choices=("null-text", "negative-prompt"),
        help="how photos are inverted: null-text optimisation (default), or negative-prompt, which "
        "takes a fraction of the time and reproduces the photo less well",
    )  # fmt: skip
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--cache", type=Path, metavar="DIR",
        help="where inversions are kept (default: fastdigin/ in the user's cache folder)",
    )  # fmt: skip
    where.add_argument(
        "--no-cache", action="store_true", help="neither use nor keep inversions of other runs"
    )


def load_photo_tools(options: argparse.Namespace, model: LatentDiffusion) -> PhotoTools:
    """What the options of a command ask for."""
    from fastdigin.editing.inversion_cache import InversionCache
    from fastdigin.tasks.sources import PhotoTools
    from fastdigin_kernels.choices import cache_folder

    if options.no_cache:
        return PhotoTools()
    folder = options.cache or cache_folder()
    return PhotoTools(inversions=InversionCache(model, folder / "inversions"))
