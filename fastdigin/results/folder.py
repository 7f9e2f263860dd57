"""The files of a results folder: what they are called, and writing them safely.

A folder may come from somebody else. Nothing in it is written or read through a link, which could
lead to any file of the user's; a lock file is opened in a way that empties it, so it must be empty.
"""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from fastdigin.errors import CannotWrite, UserError

RESULTS_FILE = "results.jsonl"
RUN_FILE = "run.json"
LOCK_FILE = ".lock"
REPORT_FILE = "report.html"
COMMAND_FILE = "command.json"
PICTURES = "images"
FILES = (RUN_FILE, RESULTS_FILE, LOCK_FILE, REPORT_FILE, COMMAND_FILE)


def check_local(out: Path | str) -> None:
    """UserError for an address, such as s3://bucket/run, which would be a folder called "s3:".

    Records are appended under a lock, which stores of objects do not have.
    """
    if re.match(r"[A-Za-z][\w+.-]+:/", str(out)):
        raise UserError(f"--out '{out}' must be a folder that this machine sees; mount that store "
                        "(mountpoint-s3, gcsfuse, rclone), or name a folder and copy it there "
                        "afterwards.")  # fmt: skip


def check_entries(out: Path, task: str = "") -> None:
    """UserError where a link, or anything else, stands for one of the folder's files or folders."""
    for name in (*FILES, PICTURES, f"{PICTURES}/{task}"):
        try:
            found = os.lstat(out / name)
        except OSError:  # nothing is there; a path that cannot be is refused where it is made
            continue
        folder = name.startswith(PICTURES)
        if not (stat.S_ISDIR if folder else stat.S_ISREG)(found.st_mode):
            kind = "folder" if folder else "file"
            wrong = "a link" if stat.S_ISLNK(found.st_mode) else "none"
            raise UserError(f"--out '{out}': {name} must be a {kind} and is {wrong}; remove it, or "
                            "choose another --out.")  # fmt: skip
        if name == LOCK_FILE and found.st_size:
            raise UserError(f"--out '{out}': {name} is not fastdigin's, as it is not empty; remove "
                            "it, or choose another --out.")  # fmt: skip


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turns the errors of a disk, such as a full one, into CannotWrite."""
    try:
        yield
    except OSError as error:
        raise CannotWrite(f"'{out}' cannot be written ({error.strerror}); what is finished is "
                          "kept, and the same command continues there") from error  # fmt: skip


def sync_folder(folder: Path) -> None:
    """Returns when the names of a folder's files are on the disk; where systems can do that."""
    if os.name == "posix" and folder.is_dir():
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def append_line(path: Path, line: bytes) -> None:
    """Appends a line to a file, on a fresh line, and returns when it is on the disk.

    All of it is there afterwards, or nothing: others may append to the file next.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    with open(os.open(path, flags, 0o644), "rb+", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        torn = end > 0 and (file.seek(end - 1), file.read(1))[1] != b"\n"
        content = b"\n" + line if torn else line
        try:
            if file.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise
