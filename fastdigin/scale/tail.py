"""The records of a folder that several processes append to, read as they come."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fastdigin.results.store import IMAGE_KEYS, RESULTS_FILE, parse_line, picture_path


class Tail:
    """Reads each line of OUT/results.jsonl once, whoever wrote it.

    added: only those that are added from now on.
    """

    def __init__(self, out: Path | str, *, added: bool = False):
        self._path = Path(out) / RESULTS_FILE
        self._offset = self._path.stat().st_size if added and self._path.exists() else 0

    def read(self) -> Iterator[tuple[int, dict]]:
        """Where each complete line begins that is new since the last call, and its record."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for text in file:
                if not text.endswith(b"\n"):
                    break  # it is still being written
                begin, self._offset = self._offset, self._offset + len(text)
                line = parse_line(text, self._path)
                if line is not None:  # else the end of a process that was killed
                    yield begin, line


class Finished:
    """Which jobs of a folder are done, as far as was read.

    Of each it is kept where its line begins: lines are long, and jobs many.
    """

    def __init__(self, out: Path | str):
        self._out = Path(out)
        self._tail = Tail(out)
        self._places: dict[tuple[str, str], int] = {}

    def read(self) -> None:
        """Also what was added since the last call."""
        for begin, line in self._tail.read():
            key = line["task"], line["id"]
            if line["status"] == "done":
                self._places[key] = begin
            else:
                self._places.pop(key, None)

    def line(self, task: str, id: str) -> dict | None:
        """The line of a job that is done and whose pictures are all there."""
        begin = self._places.get((task, id))
        if begin is None:
            return None
        path = self._out / RESULTS_FILE
        with path.open("rb") as file:
            file.seek(begin)
            line = parse_line(file.readline(), path)
        pictures = (line[name] for name in IMAGE_KEYS if line.get(name))
        return line if all(picture_path(self._out, path) for path in pictures) else None
