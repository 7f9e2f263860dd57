"""The options that several commands share for their classifiers, and loading what they name."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastdigin.commands.common_options import DTYPES, chosen_device
from fastdigin.errors import UserError
from fastdigin.reading import read_text

log = logging.getLogger(__name__)

if TYPE_CHECKING:  # torch takes seconds, and the parser does without it
    from fastdigin.models.classifier import Classifier

CLASSIFIER_HELP = (
    "embedded:NAME_OR_FOLDER, timm:NAME, torchvision:NAME[.WEIGHTS], hf:ID_OR_FOLDER, "
    "open_clip:MODEL/PRETRAINED (zero-shot) or file:PATH@ARCHITECTURE; sigmoid: before any of them "
    "for classes that are true or not each for itself"
)


def add_class_names(parser: argparse.ArgumentParser) -> None:
    """--class-names and --templates."""
    parser.add_argument(
        "--class-names", metavar="FILE",
        help="one class a line, or the classes themselves with ; between them, for zero-shot "
        "classifiers (default: ImageNet's, or those of the other classifier) and instead of the "
        "names that the weights come with",
    )  # fmt: skip
    parser.add_argument(
        "--classifier-dtype", choices=DTYPES, help="of the classifiers (default: as --dtype)"
    )
    parser.add_argument(
        "--templates", metavar="FILE",
        help="prompts of zero-shot classifiers, one a line, {} for the class (default: a photo of "
        "a {}.)",
    )  # fmt: skip


def load_classifier(
    spec: str, options: argparse.Namespace, classes: Sequence[str] | None = None
) -> Classifier:
    """The classifier of this text, on its device. classes: a zero-shot one's, without a file."""
    from fastdigin.models.classifier import Classifier
    from fastdigin.models.classifiers import is_zero_shot

    names = _class_names(options.class_names)
    if is_zero_shot(spec):
        templates = read_lines(options.templates, "--templates") if options.templates else None
        return placed(Classifier.load(spec, classes=names or classes, templates=templates), options)
    try:
        classifier = Classifier.load(spec, classes=names)
    except UserError:
        # The names may be meant for another classifier of the command, if this one has its own.
        classifier = Classifier.load(spec)
        if classifier.named != "own":
            raise
        log.warning("--class-names has %d names: %s keeps its own", len(names), classifier.name)
    return placed(classifier, options)


def placed(classifier: Classifier, options: argparse.Namespace) -> Classifier:
    """The classifier on the device and in the type that the options name."""
    from fastdigin.models.precision import choose_dtype

    device = chosen_device(options)
    return classifier.to(device, choose_dtype(options.classifier_dtype or options.dtype, device))


def _class_names(text: str | None) -> list[str] | None:
    """The classes of --class-names: of its file, or its own."""
    if not text:
        return None
    if ";" in text:
        return [name.strip() for name in text.split(";") if name.strip()]
    return read_lines(text, "--class-names")


def read_lines(path: str, option: str) -> list[str]:
    """The lines of a text file without empty ones; UserError names the option."""
    lines = [line.strip() for line in read_text(Path(path), option).splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{option} '{path}' is empty: write one word a line")
    return lines
