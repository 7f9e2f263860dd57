"""What commands write beside their pages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fastdigin.errors import UserError


def write_jsonl(out: Path, name: str, records: Iterable[Mapping[str, Any]]) -> str:
    """Writes OUT/NAME, a record a line, and returns its text; UserError where that fails."""
    from fastdigin.results.store import jsonable
    from fastdigin.storage import write_atomically

    text = "".join(json.dumps(jsonable(record)) + "\n" for record in records)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / name, text.encode())
    except OSError as error:
        raise UserError(f"--out '{out}' cannot be written ({error.strerror})") from None
    return text
