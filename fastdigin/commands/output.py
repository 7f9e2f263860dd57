"""What the commands that look at many photos print and write."""

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdigin.errors import UserError


def finish(
    options: Namespace,
    records: Iterable[Mapping[str, Any]],
    lines: Callable[[], Sequence[str]],
    write_page: Callable[[], Path],
) -> None:
    """Writes OUT/COMMAND.jsonl and the page, and prints what they hold."""
    from fastdigin.report.console import print_text

    text = write_jsonl(options.out, f"{options.command}.jsonl", records)
    page = write_page()
    if options.json:
        print(text, end="")
    else:
        print_text("\n".join(lines()))
        print_text(f"\nreport: {page}")


def print_left_out(unreadable: Mapping[str, str]) -> None:
    """Says on stderr which photos could not be read, and why."""
    for reason in unreadable.values():
        print(f"left out: {reason}", file=sys.stderr)


def write_jsonl(out: Path, name: str, records: Iterable[Mapping[str, Any]]) -> str:
    """Writes OUT/NAME, a record a line, and returns its text; UserError where that fails."""
    from fastdigin.results.store import jsonable

    text = "".join(json.dumps(jsonable(record)) + "\n" for record in records)
    write_text(out / name, text, out)
    return text


def write_text(path: Path, text: str, out: Path) -> None:
    """Writes a file, and the folders that lead there; UserError that names ``out``."""
    from fastdigin.storage import write_atomically

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
    except OSError as error:
        raise UserError(f"--out '{out}' cannot be written ({error.strerror})") from None
