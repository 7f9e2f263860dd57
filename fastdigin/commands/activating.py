"""fastdigin activating: its options, and what it prints."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdigin.commands.classifier_options import (
    CLASSIFIER_HELP,
    add_class_names,
    load_classifier,
)
from fastdigin.commands.common_options import add_device, add_layer, add_photo_search, chosen_cache
from fastdigin.commands.options import comma_list
from fastdigin.commands.output import finish, print_left_out

TOP_IMAGES = 9

if TYPE_CHECKING:  # torch takes seconds, and the parser does without it
    from fastdigin.models.classifier import Classifier
    from fastdigin.retrieval import Activating


def add_options(parser: argparse.ArgumentParser, command: str) -> None:
    """Photos, neurons and the classifier."""
    add_photo_search(parser, out=command, top=TOP_IMAGES)
    parser.add_argument("--classifier", required=True, metavar="C", help=CLASSIFIER_HELP)
    parser.add_argument("--neurons", required=True, type=comma_list, metavar="3,17")
    add_layer(parser)
    add_device(parser)
    add_class_names(parser)


def run(options: argparse.Namespace) -> int:
    """Finds, prints, writes OUT/activating.html and .jsonl; 1 if photos were unreadable."""
    from fastdigin.report.photo_page import write_activating_page

    classifier = load_classifier(options.classifier, options)
    if options.layer is not None:
        classifier = classifier.at_layer(options.layer)
    found = find_activating(classifier, options.neurons, options.photos, options.top, options)
    records = activating_records(found)
    finish(
        options, records, lambda: _lines(found, records),
        lambda: write_activating_page(options.out, classifier, found),
    )  # fmt: skip
    return 1 if found.unreadable else 0


def find_activating(
    classifier: Classifier,
    neurons: Sequence[int | str],
    photos: list[str],
    top: int,
    options: argparse.Namespace,
) -> Activating:
    """Looks at all photos, with progress and what had to be left out on stderr."""
    from tqdm import tqdm

    from fastdigin.retrieval import most_activating, photo_files

    files = photo_files(photos)
    with tqdm(total=len(files), desc="activations", unit="photo", file=sys.stderr) as bar:
        found = most_activating(
            classifier, neurons, files, top=top, cache=chosen_cache(options, "features"),
            on_progress=bar.update,
        )  # fmt: skip
    print_left_out(found.unreadable)
    return found


def activating_records(found: Activating) -> list[dict[str, Any]]:
    """Plain values, a record per neuron and photo."""
    return [
        {
            "neuron": neuron,
            "rank": rank,
            "photo": photo.id,
            "file": str(photo.image) if isinstance(photo.image, Path) else None,
            "activation": activation,
            "smallest": found.ranges[neuron][0],
            "seen": found.seen,
        }
        for neuron, best in found.top.items()
        for rank, (activation, photo) in enumerate(best, 1)
    ]


def _lines(found: Activating, records: list[dict[str, Any]]) -> list[str]:
    from fastdigin.report.console import table

    rows = [
        [str(r["neuron"]), str(r["rank"]), r["photo"], f"{r['activation']:.4g}"] for r in records
    ]
    ranges = [
        f"neuron {neuron} goes from {low:.4g} to {high:.4g}"
        for neuron, (low, high) in found.ranges.items()
    ]
    titles = ["neuron", "rank", "photo", "activation"]
    return [table(titles, rows), "", *ranges, f"{found.seen} photos looked at"]
