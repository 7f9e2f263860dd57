"""fastdigin audit: its options, and what it prints."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from fastdigin.commands.classifier_options import (
    CLASSIFIER_HELP,
    add_class_names,
    load_classifier,
)
from fastdigin.commands.common_options import (
    add_cache_options,
    add_device,
    add_images,
    add_out,
    add_seed,
    chosen_folder,
)
from fastdigin.commands.options import count
from fastdigin.commands.output import finish, write_jsonl
from fastdigin.errors import visible

if TYPE_CHECKING:  # torch takes seconds, and the parser does without it
    from fastdigin.audit import Audit
    from fastdigin.photos import ImageInput


def add_options(parser: argparse.ArgumentParser, command: str) -> None:
    """The photos, the classifier, and where the page goes."""
    add_images(parser)
    parser.add_argument("--classifier", required=True, metavar="C", help=CLASSIFIER_HELP)
    parser.add_argument(
        "--against", metavar="C",
        help="another classifier of the same classes: find only what this one does not go by",
    )  # fmt: skip
    parser.add_argument("--limit", type=count, metavar="N", help="only the first N photos")
    add_out(parser, command)
    add_seed(parser)
    add_cache_options(parser, "inversions")
    add_device(parser)
    add_class_names(parser)


def run(options: argparse.Namespace) -> int:
    """Audits, prints, writes OUT/audit.html, audit.jsonl and beside.jsonl; 1 if jobs failed."""
    from tqdm import tqdm

    from fastdigin.audit import audit
    from fastdigin.audit.findings import plain
    from fastdigin.commands.run import advance
    from fastdigin.commands.task import load_engine
    from fastdigin.editing.inversion_cache import InversionCache
    from fastdigin.models.diffusion import EMBEDDED
    from fastdigin.photos import collect
    from fastdigin.report.audit_page import write_audit_page
    from fastdigin.tasks.sources import PhotoTools

    photos = with_true_masks(collect(options.images, options.limit))
    if options.crop:
        photos = [replace(photo, crop=True) for photo in photos]
    classifier = load_classifier(options.classifier, options)
    against = None
    if options.against is not None:
        against = load_classifier(options.against, options, classifier.classes)
    engine = load_engine(EMBEDDED, device=options.device, dtype=options.dtype)
    folder = chosen_folder(options)
    kept = folder and InversionCache(engine.model, folder / "inversions")
    tools = PhotoTools(inversions=kept)
    with tqdm(desc="audit", unit="explanation", file=sys.stderr) as bar:
        found = audit(
            engine, classifier, photos, against=against, seed=options.seed, tools=tools,
            on_plan=bar.reset, on_progress=lambda share: advance(bar, share),
        )  # fmt: skip
    for class_, attribute, feature in found.unmeasured:
        said = f"not measured: {class_}, {attribute} {feature}: too few photos lend it to others"
        print(visible(said), file=sys.stderr)
    for name, error in found.failed.items():
        print(visible(f"failed: {name}: {error}"), file=sys.stderr)
    finish(
        options, map(plain, found.findings), lambda: _lines(found),
        lambda: write_audit_page(options.out, found),
    )  # fmt: skip
    beside = [c for c in found.candidates if not c.found]
    write_jsonl(options.out, "beside.jsonl", map(plain, [*beside, *found.correlations]))
    return 1 if found.failed else 0


def with_true_masks(photos: list[ImageInput]) -> list[ImageInput]:
    """The photos; packaged ones with the masks that come with them."""
    from fastdigin import embedded

    masks = {photo.path: photo.mask_path for photo in embedded.photos()}
    return [
        replace(photo, mask=masks[photo.image])
        if photo.mask is None and photo.image in masks
        else photo
        for photo in photos
    ]


def _lines(found: Audit) -> list[str]:
    from fastdigin.report.console import table

    rows = [
        [
            f.class_, f.attribute, f.feature,
            *(f"{100 * effect.mean:+.0f}" for effect in f.effects), f"{f.confidence:.2f}",
        ]
        for f in found.findings
    ]  # fmt: skip
    other = [f"on {found.against}"] if found.against else []
    titles = ["class", "attribute", "feature", "effect, points", *other, "confidence"]
    if not rows:
        only = f", and not to {found.against}" if found.against else ""
        return [f"{found.classifier}: no feature was found to stand for a class{only}"]
    return [table(titles, rows)]
