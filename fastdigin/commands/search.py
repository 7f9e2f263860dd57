"""fastdigin search: its options, and what it prints."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdigin.commands.cache_options import add_cache_options, chosen_cache
from fastdigin.commands.classifier_options import (
    CLASSIFIER_HELP,
    add_class_names,
    load_classifier,
)

if TYPE_CHECKING:  # torch takes seconds, and the parser does without it
    from fastdigin.retrieval import Label, Search


def add_options(parser: argparse.ArgumentParser, command: str) -> None:
    """The image, the photos and the classifiers."""
    parser.add_argument("image", type=Path, metavar="IMAGE", help="a result, or any other picture")
    parser.add_argument(
        "photos", nargs="+", metavar="PHOTOS",
        help="folders with their subfolders, files, tables or data sets",
    )  # fmt: skip
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
    parser.add_argument("--top", type=int, default=20, metavar="K", help="photos (default 20)")
    parser.add_argument(
        "--out", type=Path, default=Path("search"), metavar="DIR", help="(default search)"
    )
    add_cache_options(parser, "features")
    add_class_names(parser)


def run(options: argparse.Namespace) -> int:
    """Searches, prints, writes OUT/search.html and search.jsonl; 1 if photos were unreadable."""
    import torch
    from tqdm import tqdm

    from fastdigin.commands.output import write_jsonl
    from fastdigin.photos import ImageInput
    from fastdigin.report.photo_page import write_search_page
    from fastdigin.retrieval import find_similar, load_embedding, photo_files

    photos = photo_files(options.photos)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    embedding = load_embedding(options.embedding).to(device)
    classifiers = [load_classifier(spec, options).to(device) for spec in options.classifier]
    query = ImageInput(options.image.name, options.image)
    bar = tqdm(total=len(photos), desc="search", unit="photo", file=sys.stderr)
    with bar:
        found = find_similar(
            query, photos, embedding, classifiers, top=options.top, asked=options.asked,
            cache=chosen_cache(options, "features"), on_progress=bar.update,
        )  # fmt: skip
    for reason in found.unreadable.values():
        print(f"left out: {reason}", file=sys.stderr)
    text = write_jsonl(options.out, "search.jsonl", search_records(found))
    page = write_search_page(options.out, options.image, options.embedding, found)
    if options.json:
        print(text, end="")
    else:
        _print(found)
        print(f"\nreport: {page}")
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


def _print(found: Search) -> None:
    from fastdigin.report.console import print_text, table
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
    lines.append(f"{found.compared} photos compared")
    print_text("\n".join(lines))


def _cell(label: Label, asked: str | None) -> str:
    from fastdigin.results.numbers import percent

    first = f"{label.name.split(',')[0]} {percent(label.confidence)}"
    return (
        first if label.asked is None else f"{first} ({asked.split(',')[0]} {percent(label.asked)})"
    )
