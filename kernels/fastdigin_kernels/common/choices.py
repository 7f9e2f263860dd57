"""What was found to be fastest on this machine, remembered on disk and shared by processes.

A small JSON file for each kind of choice in the user's cache folder (FASTDIGIN_CACHE names another
one): environment -> {what was asked -> answer}. The environment is everything that may change the
answer: versions, the processor or GPU, the compiled library. A file that cannot be read is
replaced, a folder that cannot be written costs the memory alone: both are logged.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import torch
import torch.nn.attention
from filelock import FileLock

from fastdigin_kernels.common import devices, native

_log = logging.getLogger(__name__)


def remembered(
    kind: str, device: torch.device, key: str, names: Collection[str], decide: Callable[[], str]
) -> str:
    """Which of ``names`` an earlier call or another process chose for ``key``, or decides now."""
    with locked(device, kind) as choices:
        if choices.get(key) not in names:
            choices[key] = decide()
        return choices[key]


@contextlib.contextmanager
def locked(device: torch.device, kind: str) -> Iterator[dict[str, str]]:
    """The choices of a kind in this environment, to read and to add to; written back at the end.

    Of several processes one holds them at a time, so that the first one's choice is the others'
    too and they do not disturb each other's timings.
    """
    path = cache_folder() / f"{kind}.json"
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(path.with_suffix(".lock")))
        except (OSError, NotImplementedError) as error:  # some network file systems
            _log.info("%s is not locked against other processes: %s", path, error)
        everything = _read(path)
        choices = everything.setdefault(environment(device), {})
        before = dict(choices)
        yield choices
        if choices != before:
            _write(path, everything)


def cache_folder() -> Path:
    """For what later runs can use again: FASTDIGIN_CACHE, or the user's folder; may be absent."""
    if given := os.environ.get("FASTDIGIN_CACHE"):
        return Path(given)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        return (Path(base) if base else _home() / "AppData" / "Local") / "fastdigin"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else _home() / ".cache") / "fastdigin"


def _home() -> Path:
    """The user's; where nobody knows one, as in some containers, a folder that cannot be made."""
    home = os.path.expanduser("~")
    return Path(home if os.path.isabs(home) else "/nonexistent")


def environment(device: torch.device) -> str:
    """The key of a machine and its software."""
    if devices.kind_of(device) == "cuda":
        from importlib.metadata import PackageNotFoundError, version

        try:
            triton = version("triton")
        except PackageNotFoundError:
            triton = "none"
        # FlashAttention 3 or 4 is behind PyTorch's attention where it was activated there.
        flash = getattr(torch.nn.attention, "current_flash_attention_impl", lambda: None)()
        name, kernels = devices.device_of(device).name, f"triton {triton}, flash {flash}"
    else:
        name, kernels = native.cpu_model(), f"library {native.fingerprint()}"
    return f"torch {torch.__version__}, {kernels}, {name}"


def _read(path: Path) -> dict[str, dict[str, str]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        _log.warning("choices in %s are not readable and are made anew: %s", path, error)
        return {}
    if not isinstance(content, dict):
        _log.warning("choices in %s are no JSON object and are made anew", path)
        return {}
    return {
        environment: {str(key): str(name) for key, name in chosen.items()}
        for environment, chosen in content.items()
        if isinstance(chosen, dict)
    }


def _write(path: Path, content: dict[str, dict[str, str]]) -> None:
    """At once or not at all: a reader never sees half a file."""
    temporary = path.with_suffix(f".{os.getpid()}")
    try:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        _log.warning("choices cannot be kept in %s: %s", path, error)
        with contextlib.suppress(OSError):
            temporary.unlink()
