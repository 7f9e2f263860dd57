"""One record as HTML: its pictures, key figures and curves. The report and notebooks show it."""

import base64
import io
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from fastdigin.results.curves import Curve, Values, curve
from fastdigin.results.numbers import number
from fastdigin.results.pictures import open_image, to_pil
from fastdigin.results.views import badge, below_pictures

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

_QUOTED_PATH = re.compile(r"""(['"])(?:[A-Za-z]:)?[/\\][^'"]*[/\\]([^/\\'"]+)\1""")
_PATH = re.compile(r"""(?<![\w./\\'"])(?:[A-Za-z]:)?[/\\](?:[^/\\\s]+[/\\])+([^/\\\s]+)""")


@cache
def templates(*packages: str) -> Environment:
    """The templates of packages; everything that is put into them is escaped."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package) for package in packages]),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.globals |= {
        function.__name__: function
        for function in (badge, curves, facts, heading, picture, pictures)
    }
    return environment


def source(environment: Environment, name: str) -> Markup:
    """A file beside the templates, word by word."""
    return Markup(environment.loader.get_source(environment, name)[0])


def card_html(record: Any) -> str:
    """A record's card with its style, for a notebook."""
    environment = templates("fastdigin.results")
    card = environment.get_template("card.html").module.card(record, zoom=False)
    return f'<style>{source(environment, "card.css")}</style><div class="fastdigin">{card}</div>'


def heading(record: Any) -> str:
    """What the record says in a sentence."""
    return without_folders(record.caption or f"Job {record.id}")


def facts(record: Any) -> list[tuple[str, Any]]:
    """(label, text) of what is known, beside the badge."""
    views = [view for view in record.views() if "card" in view.places and not view.badge]
    found = [(view.title(type(record)), view.text(record)) for view in views]
    found += [(n, x) for n, x in record.extra.items() if isinstance(x, (str, int, float))]
    found += [(name, getattr(record, name)) for name in ("error", "iterations", "seed")]
    found.append(("seconds", number(record.seconds)))
    return [(label, without_folders(str(text))) for label, text in found if text is not None]


def without_folders(text: str) -> str:
    """``text`` with the names of files instead of absolute paths: pages are meant to be shared."""
    return _PATH.sub(r"\1", _QUOTED_PATH.sub(r"\1\2\1", text))


def pictures(record: Any) -> list[dict[str, Any]]:
    """The pictures to be shown. The photo is one of them where it or its figure differs from
    that of its reconstruction.
    """
    names = [name for name in LABELS if name in record.paths.keys() | record.pictures.keys()]
    figures = below_pictures(record)
    try:
        photo, start = record.input_image, record.initial_image
    except OSError:  # each is then shown as missing
        photo = start = None
    same = (
        photo is not None
        and start is not None
        and photo.shape == start.shape
        and float((photo - start).abs().mean()) <= 0.5 / 255
        and figures.get("input_image") in (None, figures.get("initial_image"))
    )
    return [picture(record, name) for name in names if name != "input_image" or not same]


def picture(record: Any, name: str) -> dict[str, Any]:
    """A picture of a record with the figure that belongs to it. A missing one has no uri."""
    found = record.pictures.get(name)
    return {
        "label": LABELS[name],
        "alt": f"{LABELS[name].capitalize()}: {heading(record)}",
        "uri": data_uri(record.file(name) if found is None else found),
        "note": below_pictures(record).get(name, ""),
    }


def data_uri(picture: Path | Tensor | None) -> str | None:
    """A picture, reduced to EMBEDDED_SIDE, as a data URI; None where a file cannot be read."""
    if picture is None:
        return None
    try:
        opened = to_pil(picture) if isinstance(picture, Tensor) else open_image(picture)
    except OSError:
        return None
    photo = opened.mode not in ("L", "1")
    shown = opened.convert("RGB" if photo else "L")
    # As PNG, a thousand reduced photographs would weigh over 100 MB.
    kind = "jpeg" if photo and max(shown.size) > EMBEDDED_SIDE else "png"
    shown.thumbnail((EMBEDDED_SIDE, EMBEDDED_SIDE), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    shown.save(content, format=kind, quality=90)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


def curves(record: Any) -> list[Curve]:
    """The total loss, and what the history tells of confidences and activations."""
    history, best = record.history or (), record.best_iteration

    def series(word: str) -> dict[str, Values]:
        keys = dict.fromkeys(key for entry in history for key in entry if word in key.lower())
        return {
            key.replace("_", " ").replace(word, "").strip() or word: [e.get(key) for e in history]
            for key in keys
        }

    charts = (
        curve("total loss (no unit)", {"total": [e.get("total") for e in history]}, best),
        curve("activation (neuron's unit)", series("activation"), best),
        curve("confidence (%)", series("confidence"), best, share=True),
    )
    return [chart for chart in charts if chart is not None]
