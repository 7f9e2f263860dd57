"""Tables that users write: CSV with a header, JSON lines, Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastdigin.errors import UserError

TABLE_SUFFIXES = {".csv", ".jsonl", ".parquet"}


def read_table(path: Path, columns: Sequence[str], needed: str) -> list[dict[str, str]]:
    """The rows as texts, without empty cells; ``columns`` may occur, ``needed`` must.

    Raises UserError for a file that cannot be read, has no rows, or a row that is not as it should.
    """
    rows = []
    for number, row in enumerate(_rows(path), start=1):
        problem = _problem(row, columns, needed)
        if problem:
            raise UserError(
                f"table '{path}', row {number}: {problem}; the columns are "
                f"{', '.join(columns)}, of which {needed} is needed"
            )
        rows.append({key: str(value) for key, value in row.items() if value not in (None, "")})
    if not rows:
        raise UserError(f"table '{path}' has no rows")
    return rows


def _rows(path: Path) -> list[Any]:
    if path.suffix.lower() == ".parquet":
        return _parquet(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".csv":
            return list(csv.DictReader(io.StringIO(text, newline="")))
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"table '{path}' cannot be read: {error}") from None


def _parquet(path: Path) -> list[Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            f"table '{path}' needs the package pyarrow: pip install 'fastdigin[datasets]'"
        ) from None
    try:
        return parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"table '{path}' cannot be read: {error}") from None


def _problem(row: Any, columns: Sequence[str], needed: str) -> str | None:
    """What is wrong with one row as its reader gave it."""
    if not isinstance(row, dict):
        return "not an object of columns"
    if None in row:
        return f"more cells than the header has columns ({row[None]})"
    unknown = [key for key in row if key not in columns]
    if unknown:
        return f"unknown column {unknown[0]!r}"
    if isinstance(row.get(needed), (dict, list, bytes)):
        return f"{needed} is not a text"
    return None if row.get(needed) not in (None, "") else f"no {needed}"
