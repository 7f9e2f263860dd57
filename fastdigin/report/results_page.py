"""The report of a results folder: one HTML page."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdigin.errors import UserError
from fastdigin.report.page import write_page
from fastdigin.report.summary import summary
from fastdigin.results import Record, read_records, read_runs, record_class, tasks
from fastdigin.results.card import picture, without_folders
from fastdigin.results.folder import REPORT_FILE, RESULTS_FILE
from fastdigin.results.pictures import MEANINGS
from fastdigin.results.store import flatten
from fastdigin.results.views import Cross, badge

# Beyond these a page gets too heavy for a browser; the folder holds the rest.
JOBS_SHOWN = 200
NEURONS_SHOWN = 24


def write_report(out: Path | str) -> Path:
    """Writes OUT/report.html from OUT/run.json, OUT/results.jsonl and the pictures they name.

    Args:
        out: the folder that records were saved into.

    Returns:
        The page's path.

    Raises:
        UserError: the folder holds no run, or cannot be written.

    Example:
        >>> for record in records:
        ...     record.save("out")
        >>> fd.write_report("out")
    """
    out = Path(out)
    runs = read_runs(out)
    if not runs:
        raise UserError(f"'{out}' holds no results (no run.json); name the --out of a run.")
    records = read_records(out)
    known = [*tasks(), *runs, *(record.task for record in records)]
    there = {*runs, *(record.task for record in records)}
    sections = [_section(task, records) for task in dict.fromkeys(known) if task in there]
    images = sum(len(section["done"]) for section in sections)
    return write_page(
        out / REPORT_FILE,
        "report.html",
        eyebrow="fastdigin report",
        heading="What the classifier goes by",
        images=images,
        sections=sections,
        shown=JOBS_SHOWN // len(sections),
        failed=[
            (record.id, record.task, without_folders(record.error or "no reason recorded"))
            for record in records
            if record.status == "failed"
        ],
        failures_shown=JOBS_SHOWN,
        runs=list(runs),
        settings=_settings(runs),
        swatches=MEANINGS,
        results_file=RESULTS_FILE,
    )


def _section(task: str, records: Sequence[Record]) -> dict[str, Any]:
    cls = record_class(task)
    records = [record for record in records if record.task == task]
    done = [record for record in records if record.status == "done"]
    good = [record for record in done if (seen := badge(record)) and seen[0]]
    return {
        "about": cls,
        "done": done,
        "example": next(iter(good or done), None),
        "figures": summary(records),
        "crossed": [table for view in cls.crossed if (table := _crossed(view, done))],
        "rows": _rows(cls, done),
    }


def _rows(cls: type[Record], done: Sequence[Record]) -> list[list[dict[str, Any]]]:
    """The pictures of photos that have several explanations, a row a photo.

    The photo comes first, or between what a neuron makes of it when it is raised and lowered.
    """
    groups: dict[tuple, list[Record]] = {}
    for record in done if cls.beside else ():
        groups.setdefault(tuple(getattr(record, name) for name in cls.beside), []).append(record)
    rows = []
    for key, members in groups.items():
        if None in key or len(members) < 2:
            continue
        members.sort(key=lambda record: getattr(record, "direction", None) != "max")
        shown = [picture(r, "image") | {"label": getattr(r, "direction", "after")} for r in members]
        shown.insert(
            sum(one["label"] == "max" for one in shown), picture(members[0], "input_image")
        )
        rows.append(shown)
    return rows


def _crossed(view: Cross, done: Sequence[Record]) -> dict[str, Any] | None:
    """The table of a view; None where there is only one column, which crosses nothing."""
    records = [record for record in done if getattr(record, view.name)]
    columns = list(dict.fromkeys(name for r in records for name in getattr(r, view.name)))
    if len(columns) < 2:
        return None
    caption = view.caption
    if max(len(records), len(columns)) > NEURONS_SHOWN:
        of = f"of {len(records)} images and {len(columns)} {view.own}s"
        caption += f" The first {NEURONS_SHOWN} {of}."
    rows = [
        [getattr(record, name) for name in (view.own, view.also, view.name)]
        for record in records[:NEURONS_SHOWN]
    ]
    return {"caption": caption, "own": view.own, "columns": columns[:NEURONS_SHOWN], "rows": rows}


def _settings(runs: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Rows: a setting and its value in each task."""
    flat = [flatten(settings) for settings in runs.values()]
    names = dict.fromkeys(name for settings in flat for name in settings)
    return [[n, *(_value(s[n]) if n in s else "–" for s in flat)] for n in names]


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return without_folders(text)
