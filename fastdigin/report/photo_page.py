"""Pages of photos: what those of searching and of activating photos share."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

from torch import Tensor

from fastdigin.errors import UserError
from fastdigin.report.cards import data_uri
from fastdigin.report.html import html_page
from fastdigin.results.pictures import to_pil
from fastdigin.storage import write_atomically

SHOWN = 200
"""More photos make a page that no browser likes."""


def write_photo_page(target: Path, eyebrow: str, title: str, lead: str, sections: str) -> Path:
    """Writes a page that needs nothing beside it, and returns its path.

    eyebrow, title, lead: plain text. sections: HTML. Raises UserError where it cannot be written.
    """
    body = (
        f'<div class="top"><div class="eyebrow">{escape(eyebrow)}</div><h1>{escape(title)}</h1>'
        f'<p class="lead">{escape(lead)}</p></div><main>{sections}</main>'
    )
    try:
        content = html_page(body).encode("utf-8", "replace")
        write_atomically(target, lambda file: file.write(content))
    except OSError as error:
        raise UserError(
            f"'{target}' cannot be written ({error.strerror}); make the folder writable."
        ) from None
    return target


def figure(image: str | Path | Tensor, title: str, lines: Iterable[str] = ()) -> str:
    """A photo, a file or (3, H, W) in [0, 1], with a title in bold and lines below it."""
    uri = _tensor_uri(image) if isinstance(image, Tensor) else data_uri(Path(image))
    alt = escape(title)
    picture = '<div class="missing">missing</div>'
    if uri:
        picture = f'<img src="{uri}" alt="{alt}" decoding="async">'
    below = "".join(f"<span>{escape(line)}</span>" for line in lines)
    return f"<figure>{picture}<figcaption><b>{alt}</b>{below}</figcaption></figure>"


def gallery(title: str, figures: Iterable[str], more: int = 0, file: str = "") -> str:
    """A section of figures. more: how many others are in ``file``."""
    note = f'<p class="note">{more} more are in <code>{file}</code>.</p>' if more > 0 else ""
    return (
        f'<section><h2>{escape(title)}</h2><div class="pictures">{"".join(figures)}</div>{note}'
        "</section>"
    )


def left_out(unreadable: Mapping[str, str]) -> str:
    """A section with the reasons why photos could not be read; nothing where all could."""
    if not unreadable:
        return ""
    items = "".join(f"<li>{escape(reason)}</li>" for reason in unreadable.values())
    return f"<section><h2>Left out</h2><ul>{items}</ul></section>"


def _tensor_uri(image: Tensor) -> str:
    buffer = io.BytesIO()
    to_pil(image).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
