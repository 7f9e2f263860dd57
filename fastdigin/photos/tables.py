"""Tables that users write: CSV with a header, JSON lines, Parquet."""

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from fastdigin.errors import UserError

TABLE_SUFFIXES = {".csv", ".jsonl", ".parquet"}


def read_table(path: Path, columns: Sequence[str], needed: str) -> list[dict[str, str]]:
    """The rows as texts, without empty cells; ``columns`` may occur, ``needed`` must.

    Raises UserError for a file that cannot be read, has no rows, or a row that is not as it should.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe could be read for ever
        raise UserError(f"table '{path}' is no regular file: name a file")
    read = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}[path.suffix.lower()]
    rows = []
    try:
        for place, row in read(path):
            problem = _problem(row, columns, needed)
            if problem:
                raise UserError(
                    f"table '{path}', {place}: {problem}; the columns are "
                    f"{', '.join(columns)}, of which {needed} is needed"
                )
            rows.append({key: str(value) for key, value in row if not _empty(value)})
    except UserError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"table '{path}' cannot be read: {error}") from None
    if not rows:
        raise UserError(f"table '{path}' has no rows")
    return rows


Row = list[tuple[str | None, Any]]
"""(column, value): a column may stand twice, which a mapping would hide."""


def _csv(path: Path) -> Iterator[tuple[str, Row]]:
    # Strictly, since a quote that is never closed would swallow the rows that follow.
    text = io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")
    lines = (line for line in csv.reader(text, strict=True) if line)
    titles = next(lines, [])
    for number, cells in enumerate(lines, start=1):
        yield f"row {number}", list(zip_longest(titles, cells))


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line, object_pairs_hook=list)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number}: {error}") from None


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(
            f"table '{path}' needs the package pyarrow: pip install 'fastdigin[datasets]'"
        ) from None
    try:
        table = parquet.ParquetFile(path).read()
        columns = [_values(column, pyarrow) for column in table.columns]
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from None
    for number, cells in enumerate(zip(*columns, strict=True), start=1):
        yield f"row {number}", list(zip(table.column_names, cells, strict=True))


def _values(column: Any, pyarrow: Any) -> list[Any]:
    """A column's values. A text that is not UTF-8 is read as the name of a file would be."""
    if pyarrow.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)):
        return column.to_pylist()
    values = column.cast(pyarrow.large_binary()).to_pylist()
    return [value and value.decode("utf-8", "surrogateescape") for value in values]


def _empty(value: Any) -> bool:
    return value is None or value == "" or value != value  # the last is NaN


def _problem(row: Any, columns: Sequence[str], needed: str) -> str | None:
    """What is wrong with one row as its reader gave it."""
    if not isinstance(row, list) or not all(isinstance(cell, tuple) for cell in row):
        return "not an object of columns"
    names = [name for name, _ in row]
    if None in names:
        return f"more cells than the header has columns ({row[names.index(None)][1]!r})"
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        return f"two columns are called {twice!r}"
    unknown = [name for name in names if name not in columns]
    if unknown:
        return f"unknown column {unknown[0]!r}"
    other = [name for name, value in row if isinstance(value, (dict, list, bytes))]
    if other:
        return f"{other[0]} is not a text"
    return f"no {needed}" if _empty(dict(row).get(needed)) else None
