"""Saying what is not on this machine, and how to get it."""

from __future__ import annotations

import difflib
import os
import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

from safetensors import SafetensorError

from fastdigin.errors import MissingFiles, MissingPackage, UserError

_DAMAGED = (SafetensorError, pickle.UnpicklingError)
LOAD_ERRORS = (OSError, RuntimeError, ValueError, *_DAMAGED)
"""What the libraries raise where weights are missing, foreign or damaged."""


def require(module: str, extra: str, spec: str) -> ModuleType:
    """The imported module; UserError that names the extra to install where it is missing."""
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        if error.name not in (package, module):
            raise
        command = f"pip install 'fastdigin[{extra}]'"
        raise MissingPackage(
            f"classifier {spec!r} needs the package {package}: {command}.", command
        ) from None


def unknown(spec: str, owner: str, name: str, known: Iterable[str], see: str) -> UserError:
    """The error for a name that ``owner`` does not have, with near matches."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3)
    close = close or [k for k in known if name.split(".")[0].casefold() in k.casefold()][:3]
    hint = f"; did you mean {', '.join(close)}?" if close else f": see {see}."
    return UserError(f"classifier {spec!r} is not a model of {owner}{hint}")


def missing_weights(
    spec: str, what: str, command: str, cause: Exception | None, kind: str = "classifier"
) -> MissingFiles:
    """The error for weights that are neither on this machine nor to be had from the network.

    what: the files and where they belong. command: fetches them on a machine with a connection.
    """
    if isinstance(cause, _DAMAGED):
        why = "are damaged"
    elif offline():
        why = "are not on this machine and HF_HUB_OFFLINE forbids fetching"
    else:
        why = "are not on this machine and could not be fetched"
    reason = f" ({first_sentence(cause)})" if cause else ""
    return MissingFiles(
        f"the weights of {kind} {spec!r} {why}: {what}{reason}. With a connection, "
        f"'{command}' fetches them.",
        command,
    )


@contextmanager
def kept_offline() -> Iterator[None]:
    """Nothing that is loaded within tries the network; for a look at what is on this machine."""
    from huggingface_hub import constants

    before = os.environ.get("HF_HUB_OFFLINE"), constants.HF_HUB_OFFLINE
    os.environ["HF_HUB_OFFLINE"], constants.HF_HUB_OFFLINE = "1", True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before[1]
        if before[0] is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = before[0]


def offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids every access to the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def first_sentence(error: Exception) -> str:
    """Of an error of another library, whose texts can be long; without the full stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0].rstrip(".")
