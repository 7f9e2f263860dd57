"""What ``auto`` chose, remembered on disk from run to run and shared by processes.

A small JSON file in the user's cache directory (FASTDIGIN_CACHE names another one): environment ->
{shape -> implementation}. The environment is everything that may change which is fastest: versions,
the processor or GPU, the compiled library. A file that cannot be read is replaced, a folder that
cannot be written costs the memory alone: both are logged.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from fastdigin_kernels.common import native
from fastdigin_kernels.common.file_lock import file_lock

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(device: torch.device, name: str = "attention") -> Iterator[dict[str, str]]:
    """The choices for this environment, to read and to add to; written back at the end.

    name: of the file, one for each kind of choice: choosing an implementation may choose its tiles.

    Of several processes one holds them at a time, so that the first one's choice is the others'
    too and they do not disturb each other's timings.
    """
    with file_lock(cache_folder() / f"{name}.lock"):
        path = cache_folder() / f"{name}.json"
        everything = _read(path)
        choices = everything.setdefault(environment(device), {})
        before = dict(choices)
        yield choices
        if choices != before:
            _write(path, everything)


def cache_folder() -> Path:
    """Where choices are kept; it need not exist."""
    if given := os.environ.get("FASTDIGIN_CACHE"):
        return Path(given)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        return (Path(base) if base else Path.home() / "AppData" / "Local") / "fastdigin"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fastdigin"


def environment(device: torch.device) -> str:
    """The key of a machine and its software."""
    if device.type == "cuda":
        from importlib.metadata import PackageNotFoundError, version

        try:
            triton = version("triton")
        except PackageNotFoundError:
            triton = "none"
        name, kernels = torch.cuda.get_device_name(device), f"triton {triton}"
    else:
        name, kernels = native.cpu_model(), f"library {native.fingerprint()}"
    return f"torch {torch.__version__}, {kernels}, {name}"


def _read(path: Path) -> dict[str, dict[str, str]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        _log.warning("attention choices in %s are not readable and are made anew: %s", path, error)
        return {}
    if not isinstance(content, dict):
        _log.warning("attention choices in %s are no JSON object and are made anew", path)
        return {}
    return {
        environment: {str(key): str(name) for key, name in chosen.items()}
        for environment, chosen in content.items()
        if isinstance(chosen, dict)
    }


def _write(path: Path, content: dict[str, dict[str, str]]) -> None:
    """At once or not at all: a reader never sees half a file."""
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        with open(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1, sort_keys=True)
        os.replace(temporary, path)
    except OSError as error:
        _log.warning("attention choices cannot be kept in %s: %s", path, error)
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
