"""One job as HTML: its pictures, key figures and curves."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from fastdigin.report.curves import curve
from fastdigin.report.summary import above_dataset, number, percent, times
from fastdigin.results.store import picture_path

# Pictures are shown about 150 CSS pixels wide: twice that is enough for sharp screens, and keeps
# a page with 200 jobs of 512 pixels at some tens of megabytes.
EMBEDDED_SIDE = 320


def card(out: Path, record: dict) -> str:
    """The card of one done record."""
    caption = record.get("caption") or f"Job {record['id']}"
    curves = _curves(record)
    meters, facts = _KEY_FIGURES[record["task"]](record)
    run = [("iterations", record.get("iterations")), ("seed", record.get("seed")),
           ("seconds", _maybe(record.get("seconds"), number))]
    facts = [(label, text) for label, text in [*facts, *run] if text is not None]
    listed = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(str(text))}</dd></div>"
                     for label, text in facts)
    return (
        '<article class="card">'
        f'<header><h3>{escape(str(caption))}</h3>{_badge(record)}'
        f'<code>{escape(str(record["id"]))}</code></header>'
        f'<div class="body{" wide" if len(curves) > 2 else ""}"><div>'
        f'<div class="pictures">{_pictures(out, record)}</div>'
        f'<div class="meters">{"".join(meters)}</div><dl class="facts">{listed}</dl></div>'
        f'<div class="curves">{"".join(curves)}</div></div></article>'
    )


def succeeded(record: dict) -> bool | None:
    """Whether the job shows what its task asks for; None where the task has no yes or no."""
    if record["task"] == "counterfactual":
        return record.get("flipped")
    if record["task"] == "neurons":
        return above_dataset(record)
    if record["task"] == "neuron-counterfactual":
        before, after = record.get("background_before"), record.get("background_after")
        return None if before is None or after is None else before != after
    return None


def data_uri(path: Path | None) -> str | None:
    """A picture as a data URI, reduced to EMBEDDED_SIDE; None where the file cannot be read."""
    if path is None:
        return None
    try:
        with Image.open(path) as picture:
            picture.load()
            if picture.format == "PNG" and max(picture.size) <= EMBEDDED_SIDE:
                kind, content = "png", path.read_bytes()
            else:
                kind, content = _reduced(picture)
    except OSError:
        return None
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def picture(out: Path, relative: str | None, alt: str) -> str:
    """An img element with the embedded picture, or a placeholder saying that it is missing."""
    uri = data_uri(picture_path(out, relative))
    if uri is None:
        return f'<div class="missing" role="img" aria-label="{escape(alt)}">missing</div>'
    return f'<img src="{uri}" alt="{escape(alt)}" decoding="async">'


def _reduced(picture: Image.Image) -> tuple[str, bytes]:
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


def _pictures(out: Path, record: dict) -> str:
    caption = str(record.get("caption") or f"job {record['id']}")
    shown = []
    for key, label in (("input_image", "photo"), ("initial_image", "before"), ("image", "after"),
                       ("difference", "change"), ("mask", "mask")):
        if record.get(key) is None or (key == "input_image" and not _photo_differs(out, record)):
            continue
        image = picture(out, record[key], f"{label.capitalize()}: {caption}")
        inner = image if image.startswith("<div") else (
            f'<button type="button" class="zoom" data-label="{label}" '
            f'aria-label="Enlarge: {label}">{image}</button>')
        note = _picture_note(record, key)
        shown.append(f"<figure>{inner}<figcaption>{label}"
                     + (f" <span>{escape(note)}</span>" if note else "")
                     + "</figcaption></figure>")
    return "".join(shown)


def _photo_differs(out: Path, record: dict) -> bool:
    """Whether the user's photo looks different from the picture the optimisation started at."""
    photo, start = (picture_path(out, record.get(key)) for key in ("input_image", "initial_image"))
    if photo is None or start is None:
        return True
    try:
        with Image.open(photo) as a, Image.open(start) as b:
            small = min(a.size, b.size)
            pixels = [np.asarray(image.convert("RGB").resize(small), dtype=np.float32)
                      for image in (a, b)]
    except OSError:
        return True
    return float(np.abs(pixels[0] - pixels[1]).mean()) > 0.5


def _picture_note(record: dict, key: str) -> str:
    notes = {
        "counterfactual": ("target_confidence_before", "target_confidence", percent),
        "neurons": ("activation_before", "activation", number),
        "neuron-counterfactual": ("activation_before", "activation", number),
    }
    if record["task"] not in notes or key not in ("initial_image", "image"):
        return ""
    before, after, show = notes[record["task"]]
    return _maybe(record.get(before if key == "initial_image" else after), show) or ""


def _badge(record: dict) -> str:
    good = succeeded(record)
    if good is None:
        return ""
    text = {
        "counterfactual": ("flipped", "not flipped"),
        "neurons": ("above the data set", "below the data set's maximum"),
        "neuron-counterfactual": ("background changed", "background kept"),
    }[record["task"]][not good]
    return f'<span class="badge{" good" if good else ""}">{text}</span>'


def _curves(record: dict) -> list[str]:
    history, best = record.get("history") or [], record.get("best_iteration")

    def series(word: str):
        names = [key for key in dict.fromkeys(key for entry in history for key in entry)
                 if word in key.lower()]
        return [(key.replace("_", " ").replace(word, "").strip() or word,
                 [entry.get(key) for entry in history]) for key in names]

    # The colours follow the meters: a confidence beside an activation is the second quantity.
    activation = curve("activation (neuron's unit)", series("activation"), best)
    charts = (
        curve("total loss (no unit)", [("total", [entry.get("total") for entry in history])], best),
        activation,
        curve("confidence (%)", series("confidence"), best, share=True, tone=bool(activation)),
    )
    return [chart for chart in charts if chart]


def _maybe(value, show: Callable[[float], str]) -> str | None:
    return None if value is None else show(value)


def _share_meter(label: str, record: dict, before: str, after: str, tone: int = 0) -> str:
    start, end = record.get(before), record.get(after)
    if start is None or end is None:
        return ""
    return meter(label, f"{percent(start)} → {percent(end)}", start, end, tone=tone)


def _activation_meter(record: dict) -> str:
    """Activations on a scale from 0 (or the lowest) to the highest, with the data set's mark."""
    start, end = record.get("activation_before"), record.get("activation")
    if start is None or end is None:
        return ""
    mark = record.get("dataset_max_activation")
    known = [v for v in (start, end, mark) if v is not None]
    low, high = min(0.0, *known), max(0.0, *known)
    span = (high - low) or 1.0
    return meter("activation", f"{number(start)} → {number(end)}", (start - low) / span,
                 (end - low) / span, mark=None if mark is None else (mark - low) / span)


def meter(label: str, text: str, start: float, end: float, *, mark: float | None = None,
          tone: int = 0) -> str:
    """A labelled track with a hollow dot at ``start`` and a full one at ``end``, all in [0,1]."""
    start, end = (min(1.0, max(0.0, v)) for v in (start, end))
    left, width = min(start, end), abs(end - start)
    tick = "" if mark is None else (
        f'<i class="mark" style="left:{100 * mark:.1f}%" title="maximum over the data set"></i>')
    return (f'<div class="meter t{tone}"><span>{escape(label)}</span><b>{escape(text)}</b>'
            f'<div class="track" aria-hidden="true">{tick}<i class="range" '
            f'style="left:{100 * left:.1f}%;width:{100 * width:.1f}%"></i>'
            f'<i class="from" style="left:{100 * start:.1f}%"></i>'
            f'<i class="to" style="left:{100 * end:.1f}%"></i></div></div>')


def _counterfactual(record: dict):
    return [_share_meter(f"confidence in {record.get('target')}", record,
                         "target_confidence_before", "target_confidence")], [
        ("source", record.get("source")), ("target", record.get("target")),
        ("judge says", record.get("judge_prediction")),
        ("background L1", _maybe(record.get("background_l1"), number)),
        ("foreground L1", _maybe(record.get("foreground_l1"), number)),
    ]


def _disagreement(record: dict):
    return [
        _share_meter("f, to be convinced", record, "f_confidence_before", "f_confidence"),
        _share_meter("g, to be unconvinced", record, "g_confidence_before", "g_confidence", tone=1),
    ], [("class", record.get("class"))]


def _neurons(record: dict):
    maximum = record.get("dataset_max_activation")
    share = None if not maximum or maximum < 0 else _maybe(
        record.get("activation"), lambda value: times(value / maximum))
    return [_activation_meter(record)], [
        ("neuron", record.get("neuron")), ("word", record.get("word")),
        ("data-set maximum", _maybe(maximum, number)), ("of that maximum", share),
        ("highest other neuron", _maybe(record.get("max_other_activation"), number)),
    ]


def _neuron_counterfactual(record: dict):
    backgrounds = [record.get(key) for key in ("background_before", "background_after")]
    return [
        _activation_meter(record),
        _share_meter("class confidence", record, "class_confidence_before", "class_confidence",
                     tone=1),
    ], [
        ("neuron", record.get("neuron")), ("direction", record.get("direction")),
        ("background", None if None in backgrounds else " → ".join(map(str, backgrounds))),
        ("foreground L1", _maybe(record.get("foreground_l1"), number)),
    ]


_KEY_FIGURES = {
    "counterfactual": _counterfactual,
    "disagreement": _disagreement,
    "neurons": _neurons,
    "neuron-counterfactual": _neuron_counterfactual,
}
