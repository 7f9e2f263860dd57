"""fastdigin search: its options, and what it prints."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdigin.commands.classifier_options import (
    CLASSIFIER_HELP,
    add_class_names,
    load_classifier,
    placed,
)
from fastdigin.commands.common_options import add_device, add_photo_search, chosen_cache
from fastdigin.commands.options import path
from fastdigin.commands.output import finish, print_left_out

if TYPE_CHECKING:  # torch takes seconds, and the parser does without it
    from fastdigin.retrieval import Label, Search


def add_options(parser: argparse.ArgumentParser, command: str) -> None:
    """The image, the photos and the classifiers."""
    parser.add_argument("image", type=path, metavar="IMAGE", help="a result, or any other picture")
    add_photo_search(parser, out=command, top=20)
    parser.add_argument(
        "--embedding", required=True, metavar="E",
        help="whose features tell what is similar: open_clip:MODEL/PRETRAINED, or any other "
        "classifier",
    )  # fmt: skip
    parser.add_argument(
        "--classifier", action="append", default=[], metavar="C",
        help="whose labels to report; may be given several times; " + CLASSIFIER_HELP,
    )  # fmt: skip
    parser.add_argument(
        "--class", dest="asked", metavar="CLASS",
        help="report the confidence in this class (default: what the first classifier sees in "
        "IMAGE)",
    )  # fmt: skip
    add_device(parser)
    add_class_names(parser)


def run(options: argparse.Namespace) -> int:
    """Searches, prints, writes OUT/search.html and search.jsonl; 1 if photos were unreadable."""
    from tqdm import tqdm

    from fastdigin.photos import ImageInput
    from fastdigin.report.photo_page import write_search_page
    from fastdigin.retrieval import find_similar, load_embedding, photo_files

    photos = photo_files(options.photos)
    embedding = placed(load_embedding(options.embedding), options)
    classifiers = [load_classifier(spec, options) for spec in options.classifier]
    query = ImageInput(options.image.name, options.image)
    bar = tqdm(total=len(photos), desc="search", unit="photo", file=sys.stderr)
    with bar:
        found = find_similar(
            query, photos, embedding, classifiers, top=options.top, asked=options.asked,
            cache=chosen_cache(options, "features"), on_progress=bar.update,
        )  # fmt: skip
    print_left_out(found.unreadable)
    finish(
        options, search_records(found), lambda: _lines(found),
        lambda: write_search_page(options.out, options.image, options.embedding, found),
    )  # fmt: skip
    return 1 if found.unreadable else 0


def search_records(found: Search) -> list[dict[str, Any]]:
    """Plain values: first what holds for the whole search, then a record per match."""
    labels = next((match.labels for match in found.matches), {})
    head = {
        "asked": found.asked,
        "compared": found.compared,
        "unreadable": found.unreadable,
        "query": {name: _record(label) for name, label in found.query.items()},
        "classifiers": {
            name: {"shares": dict(found.shares(name)), "mean_asked": found.mean_asked(name)}
            for name in labels
        },
    }
    matches = [
        {
            "rank": rank,
            "photo": match.photo.id,
            "file": None if not isinstance(match.photo.image, Path) else str(match.photo.image),
            "similarity": match.similarity,
            "labels": {name: _record(label) for name, label in match.labels.items()},
        }
        for rank, match in enumerate(found.matches, 1)
    ]
    return [head, *matches]


def _record(label: Label) -> dict[str, Any]:
    return {"class": label.name, "confidence": label.confidence, "asked": label.asked}


def _lines(found: Search) -> list[str]:
    from fastdigin.report.console import table
    from fastdigin.results.numbers import percent

    names = list(found.query)
    titles = ["rank", "photo", "similarity", *names]
    rows = [["", "(the query)", "", *(_cell(found.query[n], found.asked) for n in names)]]
    for rank, match in enumerate(found.matches, 1):
        cells = [_cell(match.labels[name], found.asked) for name in names]
        rows.append([str(rank), match.photo.id, f"{match.similarity:.3f}", *cells])
    lines = [table(titles, rows), ""]
    for name in names:
        seen = ", ".join(f"{c} {percent(share)}" for c, share in found.shares(name)[:3])
        mean = found.mean_asked(name)
        about = f"; mean confidence in {found.asked}: {percent(mean)}" if mean is not None else ""
        lines.append(f"{name} sees {seen}{about} (n = {len(found.matches)})")
    return [*lines, f"{found.compared} photos compared"]


def _cell(label: Label, asked: str | None) -> str:
    from fastdigin.results.numbers import percent

    first = f"{label.name.split(',')[0]} {percent(label.confidence)}"
    return (
        first if label.asked is None else f"{first} ({asked.split(',')[0]} {percent(label.asked)})"
    )
