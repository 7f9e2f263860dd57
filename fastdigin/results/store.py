"""The results folder of a run: one JSON line per finished job, its pictures, its settings.

A folder OUT holds

    run.json         {task: settings}; several tasks may share one folder. "environments" in it are
                     the versions, machines and weights that took part, each under its hash
    results.jsonl    one record a line, appended as jobs finish
    images/TASK/     the PNG files which the records name, relative to OUT

Appending is the only change ever made to the records, so a run that is killed loses at most the
line it was writing, and the same command continues where it stopped. Several processes may fill one
folder, each with jobs of its own (--shard): whoever writes holds .lock.

The keys of a record are the fields of its class (results/records.py); `python -m fastdigin.results`
prints what they mean.
"""

import json
import logging
import math
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock
from torch import Tensor

from fastdigin.errors import UserError
from fastdigin.results.folder import (
    LOCK_FILE,
    PICTURES,
    RESULTS_FILE,
    RUN_FILE,
    append_line,
    check_entries,
    check_local,
    sync_folder,
    writing,
)
from fastdigin.results.pictures import png, to_pil
from fastdigin.storage import text_hash, write_atomically

ENVIRONMENTS = "environments"
BLOCK = 2**16
"""Bytes that are read from the end of the records at least."""
SCHEMA = 2
"""The version of the lines; those that name none are of the first."""

PNG_END = b"\0\0\0\0IEND\xaeB`\x82"

IMAGE_KEYS = {
    "image": "the optimised image (3, H, W)",
    "initial_image": "what it is compared with (3, H, W)",
    "input_image": "the user's photo (3, H, W)",
    "difference": "what changed from initial_image to image, as a picture (3, H, W)",
    "mask": "the foreground (H, W)",
}
"""Pictures, and what they show; a line holds their files' paths below the folder, or null."""

log = logging.getLogger(__name__)


class ResultStore:
    """The results of one task in the folder OUT.

    ``out`` is created when missing. ``settings`` are those that affect the results (JSON values,
    paths and tuples included); a folder that already holds this task with other settings is
    refused, because its finished jobs would be mixed with different ones.

    environment: versions, machine and weights, for people who compare results; others than before
    are added, with a warning where a network's weights are others.

    Raises UserError when the folder cannot be written or belongs to another run.
    """

    def __init__(
        self, out: Path | str, task: str, settings: Mapping, environment: Mapping | None = None
    ):
        check_local(out)
        self.out = Path(out)
        self.task = task
        self._results = self.out / RESULTS_FILE
        self._lock = FileLock(self.out / LOCK_FILE)
        _check_writable(self.out)
        check_entries(self.out, task)
        settings = jsonable(settings)
        with writing(self.out), self._lock:
            before = _read_run_file(self.out)
            if task in before:
                check_same_settings(self.out, task, before[task], settings)
            now = {**before, task: before.get(task, settings)}
            if environment is not None:
                known = before.get(ENVIRONMENTS, {})
                _warn_of_other_weights(self.out, known.values(), environment["weights"])
                hashed = text_hash(json.dumps(environment), 12)
                now[ENVIRONMENTS] = {**known, hashed: environment}
            if now != before:
                text = json.dumps(now, indent=2, allow_nan=False) + "\n"
                write_atomically(self.out / RUN_FILE, text.encode(), durable=True)
            _mend_end(self._results)

    def append(self, record: Mapping) -> None:
        """Writes one line, whose pictures exist, and returns when it is on the disk.

        Numbers that are not finite are written as null.
        """
        record = jsonable({**record, "task": record.get("task", self.task)})
        if record["task"] != self.task:
            raise ValueError(f"this store keeps {self.task!r} records, not {record['task']!r}")
        line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        # File names that are not UTF-8 reach us as lone surrogates; \udcff is JSON for one.
        with writing(self.out), self._lock:
            sync_folder(self.out / PICTURES / self.task)
            append_line(self._results, line.encode("utf-8", "backslashreplace"))

    def save_image(self, name: str, image: Tensor) -> str:
        """Writes a (3,H,W) image or a (H,W) mask in [0,1] as PNG; returns its path below OUT.

        The same name always gives the same path (a retry replaces its own pictures), and
        different names never share one.
        """
        relative = f"{PICTURES}/{self.task}/{safe_name(name)}.png"
        path, content = self.out / relative, png(to_pil(image))
        with writing(self.out):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content, durable=True)
        return relative


def read_lines(out: Path | str) -> list[dict]:
    """The records in OUT/results.jsonl, the last one of each (task, id); [] without the file.

    Lines that are no records (a run was killed while writing) are skipped with a warning: their
    jobs count as not done.
    """
    path = Path(out) / RESULTS_FILE
    check_entries(path.parent)
    if not os.path.exists(path):
        return []
    last: dict[tuple[str, str], dict] = {}
    skipped = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            record = parse_line(line, path)
            if record is not None:
                last[record["task"], record["id"]] = record
            elif line.strip():
                skipped.append(number)
    if skipped:
        log.warning(
            "%d lines of '%s' are no complete records and are skipped (the first is line %d)",
            len(skipped), path, skipped[0],
        )  # fmt: skip
    return list(last.values())


def parse_line(line: bytes, path: Path) -> dict | None:
    """The record of a line; None where it is none. UserError for one of a newer version."""
    try:
        record = jsonable(json.loads(line))  # NaN, which other programs write, becomes None
    except (ValueError, RecursionError):  # also undecodable bytes
        return None
    if (
        not isinstance(record, dict)
        or not isinstance(record.get("task"), str)
        or not isinstance(record.get("id"), (str, int))
        or record.get("status") not in ("done", "failed")
    ):
        return None
    version = record.get("schema", 1)
    if not isinstance(version, int) or version > SCHEMA:
        raise UserError(
            f"'{path}' holds records of schema {version}, and this version of "
            f"fastdigin reads those up to {SCHEMA}; update fastdigin, or name another "
            "--out."
        )
    return record | {"id": str(record["id"])}


def read_runs(out: Path | str) -> dict[str, dict]:
    """The settings of every task in OUT, {task: settings}; {} for a folder without a run."""
    runs = _read_run_file(Path(out))
    return {task: settings for task, settings in runs.items() if task != ENVIRONMENTS}


def read_environments(out: Path | str) -> list[dict]:
    """The versions, machines and weights that made the results in OUT."""
    return list(_read_run_file(Path(out)).get(ENVIRONMENTS, {}).values())


def _read_run_file(out: Path) -> dict[str, dict]:
    path = out / RUN_FILE
    check_entries(out)
    if not os.path.exists(path):
        if os.path.exists(path.parent / RESULTS_FILE):
            raise UserError(
                f"--out '{out}' holds {RESULTS_FILE} but no {RUN_FILE}, so its "
                "settings are unknown; choose another --out."
            )
        return {}
    try:
        runs = jsonable(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, OSError, RecursionError):
        runs = None
    if not _is_run_file(runs):
        raise UserError(
            f"--out '{out}' holds a {RUN_FILE} that is not from fastdigin; choose another --out."
        )
    return runs


def _is_run_file(runs: Any) -> bool:
    known = runs.get(ENVIRONMENTS, {}) if isinstance(runs, dict) else None
    return (
        isinstance(known, dict)
        and all(isinstance(settings, dict) for settings in runs.values())
        and all(isinstance(e, dict) and isinstance(e.get("weights"), dict) for e in known.values())
    )


def _warn_of_other_weights(out: Path, before: Iterable[Mapping], weights: Mapping) -> None:
    known = [environment["weights"] for environment in before]
    for name, now in weights.items():
        if any(now != others.get(name, now) for others in known):
            log.warning("--out '%s' holds results of other weights of %s", out, name)


def picture_path(out: Path, relative: str | None) -> Path | None:
    """The picture that a record names; None where it is missing, cut off, or not in OUT/images."""
    if not relative:
        return None
    try:
        path = Path(os.path.realpath(out / relative))
    except (TypeError, ValueError):  # no text, or none that can be a path
        return None
    inside = path.is_relative_to(Path(os.path.realpath(out)) / PICTURES) and os.path.isfile(path)
    return path if inside and _is_whole(path) else None


def _is_whole(picture: Path) -> bool:
    """Whether a PNG has its end; what a disk lost from within it is not looked for."""
    try:
        with picture.open("rb") as file:
            file.seek(max(0, os.path.getsize(picture) - len(PNG_END)))
            return file.read() == PNG_END
    except OSError:
        return False


def safe_name(name: str) -> str:
    """A file name for any text, without its suffix; different texts give different names.

    Lower-case letters, digits, '.', '_' and '-' pass unchanged. Whatever had to be altered gets
    a hash of the original, and so does a name which looks as if it had one.
    """
    plain = re.sub(r"[^a-z0-9._-]+", "_", name.lower()).strip("._-")[:80]
    if plain == name and not re.search(r"-[0-9a-f]{12}$", name):
        return plain
    return f"{plain or 'image'}-{text_hash(name, 12)}"


def jsonable(value):
    """``value`` as plain JSON values: paths as text, tensors as numbers, NaN and inf as None."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((jsonable(item) for item in value), key=str)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # tensors and NumPy values of any shape
        return jsonable(value.tolist())
    raise TypeError(f"{type(value).__name__} has no JSON form")


def flatten(settings: Mapping, prefix: str = "") -> dict:
    """Nested settings as one level, {'optimizer.lr': 0.01}."""
    flat = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _check_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out) as file:
            file.write(b"fastdigin")
            file.flush()
    except FileExistsError:
        raise UserError(f"--out '{out}' is a file; name a folder.") from None
    except OSError as error:
        raise UserError(
            f"--out '{out}' cannot be written ({error.strerror}); "
            "name a folder that you may write to."
        ) from None


def check_same_settings(out: Path, task: str, old: dict, new: dict) -> None:
    """Raises UserError, which names them, where settings of a folder differ from a run's."""
    old, new = flatten(old), flatten(new)
    told = []
    for key in dict.fromkeys([*new, *old]):
        if old.get(key) != new.get(key):  # an older version did not write what is None here
            there, here = (json.dumps(side[key], ensure_ascii=False) if key in side else "not set"
                           for side in (old, new))  # fmt: skip
            told.append(f"{key}: {there:.60} there, {here:.60} here")
    if told:
        more = f" and {len(told) - 3} more" if len(told) > 3 else ""
        raise UserError(
            f"--out '{out}' holds a {task} run with other settings "
            f"({'; '.join(told[:3])}{more}); name another --out, "
            "or use the same settings to continue that run."
        )


def _mend_end(path: Path) -> None:
    """Makes the next append start on a fresh line: the last one may lack its end.

    Raises UserError where a newer version has written to the file.
    """
    if not path.exists():
        return
    with path.open("rb+") as file:
        content, size = _last_lines(file)
        end = content.rfind(b"\n") + 1
        line = content[end:] or content.splitlines()[-1] if content else b""
        last = parse_line(line, path)
        if content[end:] and last is not None:
            file.write(b"\n")
        elif content[end:]:
            file.truncate(size - len(content) + end)


def _last_lines(file: BinaryIO) -> tuple[bytes, int]:
    """(the last whole line and what follows it, the file's size), without reading all of it."""
    size, content = file.seek(0, os.SEEK_END), b""
    while content.count(b"\n") < 2 and len(content) < size:
        length = min(size, max(BLOCK, 2 * len(content)))
        file.seek(size - length)
        content = file.read(length)
    return content, size
