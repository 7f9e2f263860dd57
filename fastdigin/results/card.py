"""One record as HTML: its pictures, key figures and curves. The report and notebooks show it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from fastdigin.results.curves import Curve, curve
from fastdigin.results.numbers import number
from fastdigin.results.pictures import to_pil
from fastdigin.results.views import Meter, Rate, badge, below_pictures

EMBEDDED_SIDE = 320
"""Pictures are shown about 150 CSS pixels wide: twice that is enough for sharp screens, and keeps
a page with 200 jobs of 512 pixels at some tens of megabytes."""

LABELS = {
    "input_image": "photo",
    "initial_image": "before",
    "image": "after",
    "difference": "change",
    "mask": "mask",
}


@dataclass(frozen=True)
class Picture:
    """uri: None where the file is missing. note: the figure that belongs to the picture."""

    label: str
    alt: str
    uri: str | None
    note: str = ""


@dataclass(frozen=True)
class Card:
    """What card.html shows. badge: whether the job succeeded, and the words for it."""

    id: str
    caption: str
    badge: tuple[bool, str] | None
    pictures: list[Picture]
    meters: list[Meter]
    facts: list[tuple[str, str]]
    curves: list[Curve]


@cache
def templates(*packages: str) -> Environment:
    """The templates of packages; everything that is put into them is escaped."""
    return Environment(
        loader=ChoiceLoader([PackageLoader(package) for package in packages]),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def source(environment: Environment, name: str) -> Markup:
    """A file beside the templates, word by word."""
    return Markup(environment.loader.get_source(environment, name)[0])


def card_html(record: Any) -> str:
    """A record's card with its style, for a notebook."""
    environment = templates("fastdigin.results")
    card = environment.get_template("card.html").module.card(card_of(record), zoom=False)
    return f'<style>{source(environment, "card.css")}</style><div class="fastdigin">{card}</div>'


def card_of(record: Any) -> Card:
    """The card of a done record."""
    meters, facts = [], []
    for view in record.views():
        if not view.card or (isinstance(view, Rate) and view.badge):
            continue
        if meter := view.meter(record):
            meters.append(meter)
        elif text := view.text(record):
            facts.append((view.title(type(record)), text))
    simple = (str, int, float)
    facts += [(name, str(x)) for name, x in record.extra.items() if isinstance(x, simple)]
    if record.error is not None:
        facts.append(("error", record.error))
    facts += [("iterations", str(record.iterations)), ("seed", str(record.seed))]
    facts.append(("seconds", number(record.seconds)))
    return Card(
        id=str(record.id),
        caption=caption_of(record),
        badge=badge(record),
        pictures=_pictures(record),
        meters=meters,
        facts=facts,
        curves=_curves(record.history or (), record.best_iteration),
    )


def caption_of(record: Any) -> str:
    """The record's sentence, or its id."""
    return str(record.caption or f"Job {record.id}")


def picture_of(record: Any, name: str, alt: str) -> Picture:
    """A picture of a record with the figure that belongs to it."""
    found = record.pictures.get(name)
    uri = data_uri(record.file(name) if found is None else found)
    return Picture(LABELS[name], alt, uri, below_pictures(record).get(name, ""))


def data_uri(picture: Path | Tensor | None) -> str | None:
    """A picture, reduced to EMBEDDED_SIDE, as a data URI; None where a file cannot be read."""
    if picture is None:
        return None
    if isinstance(picture, Tensor):
        return _uri(*_encoded(to_pil(picture)))
    try:
        with Image.open(picture) as opened:
            opened.load()
            if opened.format == "PNG" and max(opened.size) <= EMBEDDED_SIDE:
                return _uri("png", picture.read_bytes())
            return _uri(*_encoded(opened))
    except OSError:
        return None


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _encoded(picture: Image.Image) -> tuple[str, bytes]:
    photo = picture.mode not in ("L", "1")
    picture = picture.convert("RGB" if photo else "L")
    picture.thumbnail((EMBEDDED_SIDE, EMBEDDED_SIDE), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    if photo and max(picture.size) == EMBEDDED_SIDE:
        # As PNG, a thousand reduced photographs would weigh over 100 MB.
        picture.save(content, format="JPEG", quality=90)
        return "jpeg", content.getvalue()
    picture.save(content, format="PNG", optimize=True)
    return "png", content.getvalue()


def _pictures(record: Any) -> list[Picture]:
    there = record.paths.keys() | record.pictures.keys()
    names = [name for name in LABELS if name in there]
    if "input_image" in names and not _photo_tells_more(record):
        names.remove("input_image")
    caption = caption_of(record)
    return [picture_of(record, n, f"{LABELS[n].capitalize()}: {caption}") for n in names]


def _photo_tells_more(record: Any) -> bool:
    """Whether the photo looks different from the picture the editing started at, or counts so."""
    figures = below_pictures(record)
    if "input_image" in figures and figures["input_image"] != figures.get("initial_image"):
        return True
    photo, start = record.input_image, record.initial_image
    if photo is None or start is None or photo.shape != start.shape:
        return True
    return float((photo - start).abs().mean()) > 0.5 / 255


def _curves(history: Sequence[Any], best: int | None) -> list[Curve]:
    def series(word: str) -> list[tuple[str, list[float | None]]]:
        keys = dict.fromkeys(key for entry in history for key in entry if word in key.lower())
        return [
            (
                key.replace("_", " ").replace(word, "").strip() or word,
                [entry.get(key) for entry in history],
            )
            for key in keys
        ]

    # The colours follow the meters: a confidence beside an activation is the second quantity.
    total = ("total", [entry.get("total") for entry in history])
    activation = curve("activation (neuron's unit)", series("activation"), best)
    confidence = curve(
        "confidence (%)", series("confidence"), best, share=True, tone=activation is not None
    )
    charts = (curve("total loss (no unit)", [total], best), activation, confidence)
    return [chart for chart in charts if chart is not None]
