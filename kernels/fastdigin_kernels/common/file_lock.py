"""One process at a time: a lock that is held by holding a file open."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Waits until no other process holds ``path``; it and its folder are made where missing.

    Where files cannot be locked (Windows, some network file systems) nothing is, and the log says
    so. A process that dies lets go.
    """
    try:
        import fcntl

        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "w")  # noqa: SIM115 - closed below
        fcntl.flock(file, fcntl.LOCK_EX)
    except (ImportError, OSError) as error:
        _log.info("%s is not locked against other processes: %s", path, error)
        yield
        return
    with file:  # closing it releases the lock
        yield
