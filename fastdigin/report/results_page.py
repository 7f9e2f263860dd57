"""The report of a results folder: one HTML page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdigin.errors import UserError
from fastdigin.report.page import write_page
from fastdigin.results import Record, read_records, read_runs, record_class, tasks
from fastdigin.results.card import Card, Picture, card_of, picture_of
from fastdigin.results.pictures import BRIGHTER, DARKER, RECOLOURED, UNCHANGED
from fastdigin.results.store import RESULTS_FILE, flatten
from fastdigin.results.views import Cross, Figure, badge, summarise

# Beyond these a page gets too heavy for a browser; the folder holds the rest.
CARDS_SHOWN = 200
FAILURES_SHOWN = 200
NEURONS_SHOWN = 24

_SWATCHES = (
    (UNCHANGED, "unchanged"),
    (BRIGHTER, "brighter"),
    (DARKER, "darker"),
    (RECOLOURED, "another colour"),
)


@dataclass(frozen=True)
class _CrossRow:
    own: str
    also: str
    values: Mapping[str, float | None]
    picture: Picture


@dataclass(frozen=True)
class _CrossTable:
    """Rows: records; columns: names, and the value of each in each record."""

    caption: str
    own: str
    columns: list[str]
    rows: list[_CrossRow]


@dataclass(frozen=True)
class _Section:
    """A task's part of the page. example: two pictures of a good job. done: how many jobs are."""

    task: str
    title: str
    question: str
    explanation: str
    example: tuple[Picture, Picture] | None
    figures: list[Figure]
    tables: list[_CrossTable]
    cards: list[Card]
    done: int


def write_report(out: Path | str) -> Path:
    """Writes OUT/report.html from OUT/run.json, OUT/results.jsonl and the pictures they name.

    Returns the page's path. Raises UserError when OUT holds no run or cannot be written.
    """
    out = Path(out)
    runs = read_runs(out)
    if not runs:
        raise UserError(f"'{out}' holds no results (no run.json); name the --out of a run.")
    by_task: dict[str, list[Record]] = {task: [] for task in tasks() if task in runs}
    by_task |= {task: [] for task in runs if task not in by_task}
    for record in read_records(out):
        by_task.setdefault(record.task, []).append(record)
    done = {task: [r for r in found if r.status == "done"] for task, found in by_task.items()}
    shares = share_out(CARDS_SHOWN, {task: len(found) for task, found in done.items()})
    images = sum(map(len, done.values()))
    return write_page(
        out / "report.html",
        "report.html",
        eyebrow="fastdigin report",
        heading="What the classifier goes by",
        counts=[_count(images, "image"), _count(len(done), "task")],
        sections=[_section(task, by_task[task], done[task], shares[task]) for task in by_task],
        failed=[r for found in by_task.values() for r in found if r.status == "failed"],
        failures_shown=FAILURES_SHOWN,
        runs=list(runs),
        settings=_settings(runs),
        swatches=_SWATCHES,
        results_file=RESULTS_FILE,
    )


def _section(task: str, records: list[Record], done: list[Record], shown: int) -> _Section:
    cls = record_class(task)
    example = next((r for r in done if (seen := badge(r)) and seen[0]), done[0]) if done else None
    return _Section(
        task,
        cls.title,
        cls.question,
        cls.explanation,
        example and tuple(
            picture_of(example, name, f"{label}, an example of {cls.title}")
            for name, label in (("initial_image", "Before"), ("image", "After"))
        ),
        summarise(records),
        [t for view in cls.views() if isinstance(view, Cross) if (t := _cross(view, done))],
        [card_of(record) for record in done[:shown]],
        len(done),
    )  # fmt: skip


def _cross(view: Cross, done: Sequence[Record]) -> _CrossTable | None:
    """None where there is only one column, which crosses nothing."""
    rows = [record for record in done if getattr(record, view.name)]
    columns = list(dict.fromkeys(name for r in rows for name in getattr(r, view.name)))
    if len(columns) < 2:
        return None
    caption = view.caption
    if max(len(rows), len(columns)) > NEURONS_SHOWN:
        caption += (
            f" The first {NEURONS_SHOWN} of {len(rows)} images and {len(columns)} {view.own}s."
        )
    shown = []
    for record in rows[:NEURONS_SHOWN]:
        own, also = str(getattr(record, view.own)), str(getattr(record, view.also) or "")
        picture = picture_of(record, "image", f"Image for {view.own} {own}")
        shown.append(_CrossRow(own, also, getattr(record, view.name), picture))
    return _CrossTable(caption, view.own, columns[:NEURONS_SHOWN], shown)


def _settings(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Setting -> its value in each task."""
    flat = [flatten(settings) for settings in runs.values()]
    names = dict.fromkeys(name for settings in flat for name in settings)
    return {n: [_value(s[n]) if n in s else "–" for s in flat] for n in names}


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list) and not any(isinstance(item, (list, dict)) for item in value):
        return ", ".join(map(_value, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def share_out(total: int, wanted: Mapping[str, int]) -> dict[str, int]:
    """Splits ``total`` cards among the tasks: what a small task leaves goes to the larger ones."""
    shares, left = {}, total
    for place, (task, n) in enumerate(sorted(wanted.items(), key=lambda item: item[1])):
        shares[task] = min(n, left // (len(wanted) - place))
        left -= shares[task]
    return shares
