"""The records of a folder that several processes append to, read as they come."""

from __future__ import annotations

import json
from pathlib import Path

from fastdigin.results.store import RESULTS_FILE


class Tail:
    """Reads each line of OUT/results.jsonl once, whoever wrote it.

    done: (task, id) -> the small part of a finished record that is needed here.
    """

    def __init__(self, out: Path | str):
        self._path = Path(out) / RESULTS_FILE
        self._offset = 0
        self.done: dict[tuple[str, str], dict] = {}

    def read(self) -> list[dict]:
        """The complete lines that were added since the last call, whole, in their order."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            added = file.read()
        added = added[: added.rfind(b"\n") + 1]  # the rest is still being written
        self._offset += len(added)
        lines = []
        for text in added.splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue  # the end of a process that was killed; read_lines warns of it
            lines.append(line)
            kept = {key: line.get(key) for key in ("id", "status", "error")}
            if line.get("status") == "done":
                self.done[line.get("task"), line.get("id")] = kept
            else:
                self.done.pop((line.get("task"), line.get("id")), None)
        return lines
