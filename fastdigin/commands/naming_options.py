"""The options that say which words a neuron's visualisation may start from."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from fastdigin.commands.classifier_options import read_lines
from fastdigin.errors import UserError

if TYPE_CHECKING:  # torch takes seconds, and --help needs none of it
    import torch

    from fastdigin.tasks.naming import CaptionedWords, RankedWords

CAPTIONS = "captions:"


def add_naming_options(parser: argparse.ArgumentParser) -> None:
    """--words and --words-from."""
    parser.add_argument("--words", metavar="FILE", help="one word a line, to start from")
    parser.add_argument(
        "--words-from", metavar="M",
        help="names what each neuron's most activating images show and starts from that: a "
        "zero-shot classifier (open_clip:MODEL/PRETRAINED) chooses among --words, another one "
        "among its classes; captions:ID, an image-to-text model of transformers, says it freely",
    )  # fmt: skip


def load_naming(options: argparse.Namespace, device: torch.device) -> RankedWords | CaptionedWords:
    """What --words-from means. UserError for --words that it would not use."""
    spec = options.words_from
    words = read_lines(options.words, "--words") if options.words else None
    from fastdigin.models.captioner import Captioner
    from fastdigin.models.classifier import Classifier
    from fastdigin.models.classifiers import is_zero_shot
    from fastdigin.tasks.naming import CaptionedWords, RankedWords

    if words and not is_zero_shot(spec):
        raise UserError(
            f"--words is given with --words-from {spec!r}, which has words of its own: leave one "
            "out, or rank the words by a zero-shot classifier, open_clip:MODEL/PRETRAINED"
        )
    if spec.startswith(CAPTIONS):
        return CaptionedWords(Captioner.load(spec.removeprefix(CAPTIONS)).to(device))
    return RankedWords(Classifier.load(spec, classes=words).to(device))
