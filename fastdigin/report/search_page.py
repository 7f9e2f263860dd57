"""The page of a search for similar photos: the query, what classifiers see, and the matches."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from fastdigin.errors import UserError
from fastdigin.report.cards import data_uri
from fastdigin.report.html import html_page
from fastdigin.report.pictures import to_pil
from fastdigin.report.store import write_atomically
from fastdigin.report.summary import percent

if TYPE_CHECKING:  # reports read results and compute none
    from fastdigin.similar import Label, Match, Search

SHOWN = 200
CLASSES_SHOWN = 4


def write_search_page(out: Path, query: Path, embedding: str, found: Search) -> Path:
    """Writes OUT/search.html, a page that needs nothing beside it, and returns its path.

    Raises UserError where it cannot be written.
    """
    body = (
        '<div class="top"><div class="eyebrow">fastdigin search</div>'
        "<h1>Photos that resemble the image</h1>"
        f'<p class="lead">{len(found.matches)} of {found.compared} photos, by the cosine of the '
        f"features of {escape(embedding)}</p></div><main>"
        f"{_query(query, found)}{_classifiers(found)}{_matches(found)}{_left_out(found)}</main>"
    )
    target = out / "search.html"
    try:
        content = html_page(body).encode("utf-8", "replace")
        write_atomically(target, lambda file: file.write(content))
    except OSError as error:
        raise UserError(
            f"'{target}' cannot be written ({error.strerror}); make the folder writable."
        ) from None
    return target


def _query(query: Path, found: Search) -> str:
    return (
        '<section><h2>The image</h2><div class="pictures">'
        f"{_figure(data_uri(query), query.name, found.query, found.asked)}</div></section>"
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


def _matches(found: Search) -> str:
    figures = "".join(_match(match, found.asked) for match in found.matches[:SHOWN])
    more = len(found.matches) - SHOWN
    note = f'<p class="note">{more} more are in <code>search.jsonl</code>.</p>' if more > 0 else ""
    return f'<section><h2>Matches</h2><div class="pictures">{figures}</div>{note}</section>'


def _match(match: Match, asked: str | None) -> str:
    image = match.photo.image
    uri = data_uri(Path(image)) if isinstance(image, (str, Path)) else _tensor_uri(image)
    return _figure(uri, f"{match.similarity:.3f} {match.photo.id}", match.labels, asked)


def _figure(uri: str | None, title: str, labels: dict[str, Label], asked: str | None) -> str:
    alt = escape(title)
    picture = '<div class="missing">missing</div>'
    if uri:
        picture = f'<img src="{uri}" alt="{alt}" decoding="async">'
    lines = [f"<b>{alt}</b>"]
    for name, label in labels.items():
        about = "" if label.asked is None else f" ({asked} {percent(label.asked)})"
        text = f"{name}: {label.name} {percent(label.confidence)}{about}"
        lines.append(f"<span>{escape(text)}</span>")
    return f"<figure>{picture}<figcaption>{''.join(lines)}</figcaption></figure>"


def _tensor_uri(image: Tensor) -> str:
    buffer = io.BytesIO()
    to_pil(image).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _left_out(found: Search) -> str:
    if not found.unreadable:
        return ""
    items = "".join(f"<li>{escape(reason)}</li>" for reason in found.unreadable.values())
    return f"<section><h2>Left out</h2><ul>{items}</ul></section>"
