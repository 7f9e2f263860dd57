"""The options of the commands that edit photos, and what they load."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fastdigin.commands.cache_options import add_cache_options, chosen_cache
from fastdigin.errors import MissingFiles, UserError

if TYPE_CHECKING:  # torch takes seconds, and --help needs none of it
    from fastdigin.models.diffusion import LatentDiffusion
    from fastdigin.tasks.inputs import ImageInput
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
        "--captions", metavar="ID",
        help="an image-to-text model of transformers, a hub id or a folder, that says what photos "
        "without a prompt show (a table's column caption says it as well)",
    )  # fmt: skip
    parser.add_argument(
        "--inversion", choices=("null-text", "negative-prompt"),
        help="how photos are inverted: null-text optimisation (default), or negative-prompt, which "
        "takes a fraction of the time and reproduces the photo less well",
    )  # fmt: skip
    parser.add_argument(
        "--segmenter", metavar="S",
        help="finds the foreground from the attention: hq-sam:vit_tiny, vit_b, vit_l or vit_h "
        "(default: the attention itself)",
    )  # fmt: skip
    parser.add_argument(
        "--segmenter-weights", metavar="FILE", help="its checkpoint (default: the hub's)"
    )
    parser.add_argument(
        "--segmenter-prompt", choices=("points", "box"), default="points",
        help="how attention marks the object for it (default points)",
    )  # fmt: skip
    add_cache_options(parser, "inversions, masks and captions")


def with_captions(options: argparse.Namespace, inputs: list[ImageInput]) -> list[ImageInput]:
    """The inputs with the captions of --captions, whose model is gone afterwards."""
    from fastdigin.tasks.captions import needs_caption

    if options.captions is None or not any(map(needs_caption, inputs)):
        return inputs
    import torch
    from tqdm import tqdm

    from fastdigin.models.captioner import Captioner
    from fastdigin.tasks.captions import captioned

    captioner = Captioner.load(options.captions)
    captioner.to("cuda" if torch.cuda.is_available() else "cpu")
    with tqdm(total=len(inputs), desc="captions", unit="photo", file=sys.stderr) as bar:
        cache = chosen_cache(options, "captions")
        return captioned(inputs, captioner, cache=cache, on_progress=bar.update)


def load_photo_tools(options: argparse.Namespace, model: LatentDiffusion) -> PhotoTools:
    """What the options of a command ask for."""
    from fastdigin.editing.inversion_cache import InversionCache
    from fastdigin.storage import cache_folder
    from fastdigin.tasks.sources import PhotoTools

    if options.segmenter_weights and options.segmenter is None:
        raise UserError("--segmenter-weights is given without --segmenter: name both")
    folder = None if options.no_cache else options.cache or cache_folder()
    return PhotoTools(
        inversions=folder and InversionCache(model, folder / "inversions"),
        segmentation=_load_segmentation(options, model, folder),
    )


def _load_segmentation(options, model: LatentDiffusion, folder: Path | None):
    """Without weights the attention has to do; that is said, and does not end the run."""
    from fastdigin.editing.segmentation import Segmentation
    from fastdigin.models.segmenter import Segmenter
    from fastdigin.storage import TensorCache

    if options.segmenter is None:
        return None
    try:
        segmenter = Segmenter.load(options.segmenter, options.segmenter_weights)
    except MissingFiles as error:
        print(f"warning: attention alone finds the foreground: {error}", file=sys.stderr)
        return None
    masks = folder and TensorCache(folder / "masks")
    return Segmentation(segmenter.to(model.device), options.segmenter_prompt, masks=masks)
