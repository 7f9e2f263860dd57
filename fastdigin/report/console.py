"""Results as plain text for the terminal."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterable

from fastdigin.report.summary import (
    above_dataset,
    number,
    percent,
    share_of_maximum,
    summarise,
    times,
)

ROWS_SHOWN = 40
_CELL_WIDTH = 28


def results_table(task: str, records: Iterable[dict]) -> str:
    """The records of one task as a plain text table, then its summary figures.

    At most ROWS_SHOWN rows; failed jobs come after it with their errors.
    """
    records = [record for record in records if record["task"] == task]
    done = [record for record in records if record["status"] == "done"]
    columns = _COLUMNS[task]
    rows = [[_clean(read(record)) for _, read in columns] for record in done[:ROWS_SHOWN]]
    parts = [table([title for title, _ in columns], rows)] if rows else []
    if len(done) > ROWS_SHOWN:
        parts.append(f"... and {len(done) - ROWS_SHOWN} more")
    failed = [record for record in records if record["status"] == "failed"]
    parts += [f"failed: {_clean(record['id'])}: {_clean(record.get('error'), 200)}"
              for record in failed[:ROWS_SHOWN]]
    if len(failed) > ROWS_SHOWN:
        parts.append(f"... and {len(failed) - ROWS_SHOWN} more failed")
    figures = summarise(task, records)
    width = max(len(figure.label) for figure in figures)
    parts += ["", *(f"{figure.label:<{width}}  {figure.value}  ({figure.note})"
                    for figure in figures)]
    return "\n".join(parts).lstrip("\n")


def print_results(task: str, records: Iterable[dict]) -> None:
    """Prints ``results_table``."""
    print_text(results_table(task, records))


def print_text(text: str) -> None:
    """Prints; characters that the terminal's encoding lacks become '?'."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding))


def _field(key: str, show: Callable = str) -> Callable[[dict], str]:
    return lambda record: "-" if record.get(key) is None else show(record[key])


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"


def _arrow(before: str, after: str, show: Callable = percent) -> Callable[[dict], str]:
    return lambda record: f"{_field(before, show)(record)} → {_field(after, show)(record)}"


def _above(record: dict) -> str:
    above = above_dataset(record)
    return "-" if above is None else _yes_no(above)


_BEST = ("best", _field("best_iteration"))
_COLUMNS: dict[str, list[tuple[str, Callable[[dict], str]]]] = {
    "counterfactual": [
        ("id", _field("id")), ("source", _field("source")), ("target", _field("target")),
        ("confidence", _arrow("target_confidence_before", "target_confidence")),
        ("flipped", _field("flipped", _yes_no)), ("judge", _field("judge_prediction")),
        ("background L1", _field("background_l1", number)), _BEST,
    ],
    "disagreement": [
        ("id", _field("id")), ("class", _field("class")),
        ("f", _arrow("f_confidence_before", "f_confidence")),
        ("g", _arrow("g_confidence_before", "g_confidence")), _BEST,
    ],
    "neurons": [
        ("id", _field("id")), ("neuron", _field("neuron")), ("word", _field("word")),
        ("activation", _arrow("activation_before", "activation", number)),
        ("of data-set max", lambda record: times(share_of_maximum(record))),
        ("above", _above), _BEST,
    ],
    "neuron-counterfactual": [
        ("id", _field("id")), ("neuron", _field("neuron")), ("direction", _field("direction")),
        ("activation", _arrow("activation_before", "activation", number)),
        ("background", _arrow("background_before", "background_after", str)),
        ("class confidence", _arrow("class_confidence_before", "class_confidence")), _BEST,
    ],
}


def _clean(text, width: int = _CELL_WIDTH) -> str:
    """One line without control characters, which could rewrite the terminal."""
    text = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c
                   for c in str(text))
    return text if len(text) <= width else text[: width - 1] + "…"


def table(titles: list[str], rows: list[list[str]]) -> str:
    """Columns of text, each as wide as its widest cell, with a rule below the titles."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = [titles, ["-" * width for width in widths], *rows]
    return "\n".join("  ".join(cell.ljust(width) for cell, width
                               in zip(line, widths, strict=True)).rstrip() for line in lines)
