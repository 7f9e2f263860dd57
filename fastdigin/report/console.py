"""Results as plain text for the terminal."""

import sys
from collections.abc import Sequence

from fastdigin.errors import visible
from fastdigin.report.summary import summary
from fastdigin.results import Record, record_class

ROWS_SHOWN = 40
_CELL_WIDTH = 28


def results_table(task: str, records: Sequence[Record]) -> str:
    """The records of one task as a plain text table, then its summary figures.

    At most ROWS_SHOWN rows; failed jobs come after it with their errors.
    """
    records = [record for record in records if record.task == task]
    done = [record for record in records if record.status == "done"]
    failed = [record for record in records if record.status == "failed"]
    cls = record_class(task)
    views = [view for view in cls.views() if "table" in view.places]
    titles = ["id", *(view.title(cls) for view in views), "best"]
    cells = [(r.id, *(v.text(r) for v in views), r.best_iteration) for r in done[:ROWS_SHOWN]]
    rows = [[clean(cell) for cell in row] for row in cells]
    parts = [table(titles, rows)] if rows else []
    if len(done) > ROWS_SHOWN:
        parts.append(f"... and {len(done) - ROWS_SHOWN} more")
    parts += [f"failed: {clean(r.id)}: {clean(r.error, 200)}" for r in failed[:ROWS_SHOWN]]
    if len(failed) > ROWS_SHOWN:
        parts.append(f"... and {len(failed) - ROWS_SHOWN} more failed")
    figures = summary(records)
    width = max(len(figure.label) for figure in figures)
    parts += ["", *(f"{f.label:<{width}}  {f.value}  ({f.note})" for f in figures)]
    return "\n".join(parts).lstrip("\n")


def print_results(task: str, records: Sequence[Record]) -> None:
    """Prints ``results_table``."""
    print_text(results_table(task, records))


def print_text(text: str) -> None:
    """Prints; characters that the terminal's encoding lacks become '?'."""
    encoding = sys.stdout.encoding or "utf-8"
    print(visible(text).encode(encoding, "replace").decode(encoding))


def clean(value: object, width: int = _CELL_WIDTH) -> str:
    """One line; "-" for None."""
    text = visible("-" if value is None else str(value)).replace("\n", " ")
    return text if len(text) <= width else text[: width - 1] + "…"


def table(titles: list[str], rows: list[list[str]]) -> str:
    """Columns of text, each as wide as its widest cell, with a rule below the titles."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = [titles, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
