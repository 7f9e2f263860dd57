"""The page of photos: those that a search found, or those that activate neurons most."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fastdigin.report.page import write_page
from fastdigin.results.card import data_uri, without_folders
from fastdigin.results.numbers import percent

if TYPE_CHECKING:  # reports read results and compute none
    from fastdigin.models.classifier import Classifier
    from fastdigin.retrieval import Activating, Label, Search

PHOTOS_SHOWN = 200
"""More photos make a page that no browser likes."""

CLASSES_SHOWN = 4


def write_search_page(out: Path, query: Path, embedding: str, found: Search) -> Path:
    """Writes OUT/search.html and returns its path; UserError where it cannot be written."""
    matches = [
        _photo(m.photo.image, f"{m.similarity:.3f} {m.photo.id}", _lines(m.labels, found.asked))
        for m in found.matches[:PHOTOS_SHOWN]
    ]
    sections = [
        _section("The image", [_photo(query, query.name, _lines(found.query, found.asked))]),
        _section("Matches", matches, len(found.matches)),
    ]
    if found.query:
        sections.insert(1, _classifiers(found))
    about = f"{len(found.matches)} of {found.compared} photos, by the cosine of the features of"
    heading, lead = "Photos that resemble the image", f"{about} {embedding}"
    return _write(out, "search", heading, lead, sections, found.unreadable)


def write_activating_page(out: Path, classifier: Classifier, found: Activating) -> Path:
    """Writes OUT/activating.html and returns its path; UserError where it cannot be written."""
    each = max(1, PHOTOS_SHOWN // len(found.top))
    sections = [
        _section(
            "Neuron {}, from {:.3g} to {:.3g}".format(neuron, *found.ranges[neuron]),
            [_photo(photo.image, f"{value:.3g}", [photo.id]) for value, photo in best[:each]],
            len(best),
        )
        for neuron, best in found.top.items()
    ]
    layer = classifier.layer or "the layer before the head"
    heading = "Photos that activate neurons most"
    lead = f"of {found.seen}, by {layer} of {without_folders(classifier.name)}"
    return _write(out, "activating", heading, lead, sections, found.unreadable)


def _write(
    out: Path, name: str, heading: str, lead: str, sections: list, unreadable: Mapping[str, str]
) -> Path:
    return write_page(
        out / f"{name}.html",
        "photos.html",
        eyebrow=f"fastdigin {name}",
        heading=heading,
        lead=lead,
        sections=sections,
        file=f"{name}.jsonl",
        unreadable=[without_folders(reason) for reason in unreadable.values()],
    )


def _section(title: str, photos: list[dict[str, Any]], count: int = 1) -> dict[str, Any]:
    return {"title": title, "photos": photos, "more": count - len(photos)}


def _photo(image: str | Path | Tensor, title: str, lines: list[str]) -> dict[str, Any]:
    uri = data_uri(image if isinstance(image, Tensor) else Path(image))
    return {"uri": uri, "label": title, "alt": title, "lines": lines}


def _classifiers(found: Search) -> dict[str, Any]:
    titles = ["classifier", "sees in the image", "confidence", "sees in the matches"]
    rows = []
    for name, label in found.query.items():
        seen = ", ".join(f"{c} {percent(s)}" for c, s in found.shares(name)[:CLASSES_SHOWN])
        mean = found.mean_asked(name)
        about = "–" if mean is None else percent(mean)
        rows.append([name, label.name, percent(label.confidence), seen, about])
    titles.append(f"mean confidence in {found.asked}")
    return {"title": "What classifiers see", "titles": titles, "rows": rows, "more": 0}


def _lines(labels: Mapping[str, Label], asked: str | None) -> list[str]:
    lines = []
    for name, label in labels.items():
        about = "" if label.asked is None else f" ({asked} {percent(label.asked)})"
        lines.append(f"{name}: {label.name} {percent(label.confidence)}{about}")
    return lines
