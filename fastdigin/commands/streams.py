"""Work goes on where nobody reads what a command prints."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class _Stream:
    """A stream that characters of any language and a reader who has gone cannot stop.

    What cannot be written is dropped: the results are in the folder of the run.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream
        with contextlib.suppress(AttributeError):  # no file, but one of a test or a notebook
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._kept():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._kept():
            self._stream.flush()

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except OSError:  # a closed pipe, a full disk
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # what the stream still holds goes there too
            os.close(nowhere)


@contextlib.contextmanager
def kept_going() -> Iterator[None]:
    """For the time of a command: closed, full and ASCII-only streams do not stop it."""
    for descriptor in range(3):  # or the first files to be opened would be the streams
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        _Stream(stream or open(os.devnull, "w"))  # noqa: SIM115
        for stream in before
    )
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
