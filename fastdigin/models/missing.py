"""Saying what is not on this machine, and how to get it."""

import difflib
import os
import pickle
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

from safetensors import SafetensorError

from fastdigin.errors import MissingFiles, MissingPackage, UserError

_HUB_ID = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
_DAMAGED = (SafetensorError, pickle.UnpicklingError, EOFError)
_WRONG = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)
"""What libraries raise for files of another kind; most of the rest means that there are none."""


def require(module: str, extra: str, owner: str) -> ModuleType:
    """The imported module; MissingPackage that names the extra to install where it is missing.

    owner: what needs it, like "classifier 'timm:resnet18'".
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        if error.name not in (package, module):
            raise
        command = f"pip install 'fastdigin[{extra}]'"
        raise MissingPackage(f"{owner} needs the package {package}: {command}.", command) from None


def unknown(owner: str, library: str, name: str, known: Iterable[str], see: str) -> UserError:
    """The error for a name that ``library`` does not have, with near matches."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3)
    close = close or [k for k in known if name.split(".")[0].casefold() in k.casefold()][:3]
    hint = f"; did you mean {', '.join(close)}?" if close else f": see {see}."
    return UserError(f"{owner} is not a model of {library}{hint}")


@contextmanager
def loading(owner: str, files: str, command: str | None = None) -> Iterator[None]:
    """Around the loading of a network: the one error for whatever a library raises there.

    files: what is read, and where it belongs. command: fetches them where there is a connection;
    None for files of the user's own.
    Raises MissingFiles where they could not be fetched, UserError where they are wrong.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise cannot_load(owner, files, command, error) from error


def cannot_load(
    owner: str, files: str, command: str | None, cause: Exception | None = None
) -> UserError:
    """What ``loading`` raises; without a cause for what was not tried, because nothing may."""
    reason = f" ({first_sentence(cause)})" if cause else ""
    # What open_clip raises for a failed download is a RuntimeError that an OSError led to.
    wrong = isinstance(cause, _WRONG) and not isinstance(cause.__context__, OSError)
    if command is None or wrong:
        return UserError(f"{owner} cannot be loaded{reason}: give {files}.")
    if isinstance(cause, _DAMAGED):
        why = "are damaged"
    elif offline():
        why = "are not on this machine and HF_HUB_OFFLINE forbids fetching"
    else:
        why = "are not on this machine and could not be fetched"
    return MissingFiles(
        f"the files of {owner} {why}: {files}{reason}. With a connection, '{command}' fetches "
        "them.",
        command,
    )


@contextmanager
def without_bars() -> Iterator[None]:
    """Hides the bars with which transformers shows that it reads a file; downloads keep theirs."""
    from huggingface_hub import utils as hub
    from transformers.utils import logging as theirs

    shown, fetching = theirs.is_progress_bar_enabled(), not hub.are_progress_bars_disabled()
    theirs.disable_progress_bar()  # also hides those of downloads
    if fetching:
        hub.enable_progress_bars()
    try:
        yield
    finally:
        if shown:
            theirs.enable_progress_bar()
        if not fetching:
            hub.disable_progress_bars()


@contextmanager
def kept_offline() -> Iterator[None]:
    """Nothing that is loaded within tries the network; for a look at what is on this machine."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def is_folder(source: str) -> bool:
    """Whether a text names a folder of this machine, there or not, and can be no hub id."""
    return os.path.exists(source) or _HUB_ID.fullmatch(source) is None


def fetching(source: str, *options: str) -> str | None:
    """The command that fetches a repository; None where a folder of this machine was meant.

    That is so for "photos/model" too, if there is a folder "photos".
    """
    if is_folder(source) or os.path.isdir(Path(source).parent) and "/" in source:
        return None
    return " ".join(["hf download", source, *options])


def offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids every access to the network."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def first_sentence(error: Exception) -> str:
    """Of an error of another library, whose texts can be long; without the full stop.

    A heading ("Error(s) in loading state_dict for ResNet:") says nothing without what follows it.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = lines or [type(error).__name__]
    heading = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return heading.split(". ")[0].rstrip(".")
