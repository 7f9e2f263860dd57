"""The records of a folder that several processes append to, read as they come."""

from __future__ import annotations

from pathlib import Path

from fastdigin.results.store import IMAGE_KEYS, RESULTS_FILE, parse_line, picture_path


class Tail:
    """Reads each line of OUT/results.jsonl once, whoever wrote it.

    done: (task, id) -> where the line of a finished job begins. Lines are long, and jobs many.
    """

    def __init__(self, out: Path | str):
        self._out = Path(out)
        self._path = self._out / RESULTS_FILE
        self._offset = 0
        self.done: dict[tuple[str, str], int] = {}

    def read(self) -> list[dict]:
        """The complete lines that were added since the last call, whole, in their order."""
        if not self._path.exists():
            return []
        lines = []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for text in file:
                if not text.endswith(b"\n"):
                    break  # it is still being written
                begin, self._offset = self._offset, self._offset + len(text)
                line = parse_line(text, self._path)
                if line is None:
                    continue  # the end of a process that was killed; read_lines warns of it
                lines.append(line)
                if line["status"] == "done":
                    self.done[line["task"], line["id"]] = begin
                else:
                    self.done.pop((line["task"], line["id"]), None)
        return lines

    def finished(self, task: str, id: str) -> dict | None:
        """The line of a job that is done and whose pictures are there, as far as was read."""
        begin = self.done.get((task, id))
        if begin is None:
            return None
        with self._path.open("rb") as file:
            file.seek(begin)
            line = parse_line(file.readline(), self._path)
        pictures = (line[name] for name in IMAGE_KEYS if line.get(name))
        return line if all(picture_path(self._out, path) for path in pictures) else None
