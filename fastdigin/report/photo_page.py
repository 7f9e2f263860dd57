"""The page of photos: those that a search found, or those that activate neurons most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from fastdigin.report.page import write_page
from fastdigin.results.card import Picture, data_uri
from fastdigin.results.numbers import percent

if TYPE_CHECKING:  # reports read results and compute none
    from fastdigin.models.classifier import Classifier
    from fastdigin.retrieval import Activating, Label, Search

PHOTOS_SHOWN = 200
"""More photos make a page that no browser likes."""

CLASSES_SHOWN = 4


@dataclass(frozen=True)
class _Photo:
    picture: Picture
    lines: list[str]


@dataclass(frozen=True)
class _Gallery:
    """A section of photos. more: how many others are in ``file``."""

    title: str
    photos: list[_Photo]
    more: int = 0
    file: str = ""


@dataclass(frozen=True)
class _Table:
    """A section with a table, whose rows begin with their names."""

    title: str
    titles: list[str]
    rows: list[list[str]]


def write_search_page(out: Path, query: Path, embedding: str, found: Search) -> Path:
    """Writes OUT/search.html and returns its path; UserError where it cannot be written."""
    matches = [
        _photo(m.photo.image, f"{m.similarity:.3f} {m.photo.id}", _lines(m.labels, found.asked))
        for m in found.matches[:PHOTOS_SHOWN]
    ]
    image = _photo(query, query.name, _lines(found.query, found.asked))
    left = len(found.matches) - len(matches)
    return write_page(
        out / "search.html",
        "photos.html",
        eyebrow="fastdigin search",
        heading="Photos that resemble the image",
        lead=f"{len(found.matches)} of {found.compared} photos, by the cosine of the features of "
        f"{embedding}",
        sections=[
            _Gallery("The image", [image]),
            *([_classifiers(found)] if found.query else []),
            _Gallery("Matches", matches, left, "search.jsonl"),
        ],
        unreadable=list(found.unreadable.values()),
    )


def write_activating_page(out: Path, classifier: Classifier, found: Activating) -> Path:
    """Writes OUT/activating.html and returns its path; UserError where it cannot be written."""
    each = max(1, PHOTOS_SHOWN // len(found.top))
    layer = classifier.layer or "the layer before the head"
    galleries = []
    for neuron, best in found.top.items():
        low, high = found.ranges[neuron]
        galleries.append(
            _Gallery(
                f"Neuron {neuron}, from {low:.3g} to {high:.3g}",
                [_photo(photo.image, f"{value:.3g}", [photo.id]) for value, photo in best[:each]],
                len(best) - each,
                "activating.jsonl",
            )
        )
    return write_page(
        out / "activating.html",
        "photos.html",
        eyebrow="fastdigin activating",
        heading="Photos that activate neurons most",
        lead=f"of {found.seen}, by {layer} of {classifier.name}",
        sections=galleries,
        unreadable=list(found.unreadable.values()),
    )


def _photo(image: str | Path | Tensor, title: str, lines: list[str]) -> _Photo:
    uri = data_uri(image if isinstance(image, Tensor) else Path(image))
    return _Photo(Picture(title, title, uri), lines)


def _classifiers(found: Search) -> _Table:
    rows = []
    for name, label in found.query.items():
        seen = ", ".join(f"{c} {percent(s)}" for c, s in found.shares(name)[:CLASSES_SHOWN])
        mean = found.mean_asked(name)
        about = "–" if mean is None else percent(mean)
        rows.append([name, label.name, percent(label.confidence), seen, about])
    titles = ["classifier", "sees in the image", "confidence", "sees in the matches"]
    return _Table(
        "What classifiers see", [*titles, f"mean confidence in {found.asked}"], rows
    )


def _lines(labels: Mapping[str, Label], asked: str | None) -> list[str]:
    lines = []
    for name, label in labels.items():
        about = "" if label.asked is None else f" ({asked} {percent(label.asked)})"
        lines.append(f"{name}: {label.name} {percent(label.confidence)}{about}")
    return lines
