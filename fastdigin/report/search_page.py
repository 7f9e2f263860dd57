"""The page of a search for similar photos: the query, what classifiers see, and the matches."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from fastdigin.report.photo_page import SHOWN, figure, gallery, left_out, write_photo_page
from fastdigin.report.summary import percent

if TYPE_CHECKING:  # reports read results and compute none
    from fastdigin.retrieval import Label, Search

CLASSES_SHOWN = 4


def write_search_page(out: Path, query: Path, embedding: str, found: Search) -> Path:
    """Writes OUT/search.html and returns its path; UserError where it cannot be written."""
    image = figure(query, query.name, _lines(found.query, found.asked))
    matches = [
        figure(
            match.photo.image,
            f"{match.similarity:.3f} {match.photo.id}",
            _lines(match.labels, found.asked),
        )
        for match in found.matches[:SHOWN]
    ]
    return write_photo_page(
        out / "search.html",
        "fastdigin search",
        "Photos that resemble the image",
        f"{len(found.matches)} of {found.compared} photos, by the cosine of the features of "
        f"{embedding}",
        gallery("The image", [image])
        + _classifiers(found)
        + gallery("Matches", matches, len(found.matches) - SHOWN, "search.jsonl")
        + left_out(found.unreadable),
    )


def _classifiers(found: Search) -> str:
    if not found.query:
        return ""
    rows = []
    for name, label in found.query.items():
        seen = ", ".join(f"{c} {percent(s)}" for c, s in found.shares(name)[:CLASSES_SHOWN])
        mean = found.mean_asked(name)
        cells = (
            label.name, percent(label.confidence), seen, "–" if mean is None else percent(mean),
        )  # fmt: skip
        rows.append(
            f'<tr><th scope="row">{escape(name)}</th>'
            + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
            + "</tr>"
        )
    titles = ("classifier", "sees in the image", "confidence", "sees in the matches",
              f"mean confidence in {found.asked}")  # fmt: skip
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
    return (
        '<section><h2>What classifiers see</h2><div class="scroll"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _lines(labels: dict[str, Label], asked: str | None) -> list[str]:
    lines = []
    for name, label in labels.items():
        about = "" if label.asked is None else f" ({asked} {percent(label.asked)})"
        lines.append(f"{name}: {label.name} {percent(label.confidence)}{about}")
    return lines
