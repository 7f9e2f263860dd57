"""Options from settings: what a configuration dataclass says of a field becomes an option.

Also the types of arguments: what text they accept, and what they say of any other.
"""

import argparse
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastdigin.configuration import COUNT, Setting, choices, element, optional, settings_of
from fastdigin.errors import UserError

_NONE = object()
"""Stands for the word none: a None is an option that was not given."""


def add_settings(parser: argparse._ActionsContainer, cls: type, prefix: str = "") -> None:
    """An option for each field of a settings class that has one, nested settings included."""
    for name, (kind, known) in settings_of(cls).items():
        if known.flag is None:
            continue
        if dataclasses.is_dataclass(kind) and settings_of(kind):
            add_settings(parser, kind, prefix if known.flat else f"{prefix}{name}_")
        else:
            _add(parser, prefix, name, kind, known, _default(cls, name))


def chosen_settings(options: argparse.Namespace, settings: Any, prefix: str = "") -> Any:
    """``settings`` with the values that the options name."""
    changes = {}
    for name, (kind, known) in settings_of(type(settings)).items():
        if known.flag is None:
            continue
        if dataclasses.is_dataclass(kind) and settings_of(kind):
            inner = prefix if known.flat else f"{prefix}{name}_"
            changes[name] = chosen_settings(options, getattr(settings, name), inner)
        elif (value := getattr(options, prefix + name)) is not None:
            changes[name] = tuple(value) if element(kind) else value
            if value is _NONE:
                changes[name] = None
    return dataclasses.replace(settings, **changes)


def _add(parser, prefix: str, name: str, kind: Any, known: Setting, default: Any) -> None:
    kind, may_lack = optional(kind)
    flag = "--" + (known.flag or prefix + name).replace("_", "-")
    common = {"dest": prefix + name, "default": None, "help": _help(known, kind, default)}
    if kind is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
    elif item := element(kind):
        if hasattr(item, "parse"):
            metavar = getattr(item, "FORMAT", known.metavar)
            parser.add_argument(
                flag, action="append", type=_said(item.parse), metavar=metavar, **common
            )
        else:
            parser.add_argument(flag, type=list_of(_reader(item, known)), metavar="A,B", **common)
    elif values := choices(kind):
        parser.add_argument(flag, choices=values, **common)
    else:
        metavar = known.metavar or name[0].upper()
        read = _reader(kind, known)
        if may_lack and default is not None:
            common["help"] += "; none: without"
            value_of, read = read, lambda text: _NONE if text == "none" else value_of(text)
        parser.add_argument(flag, type=read, metavar=metavar, **common)


def _help(known: Setting, kind: Any, default: Any) -> str:
    text = known.help.replace("%", "%%")
    if hasattr(element(kind), "parse"):
        return f"{text}; may be given several times"
    if default is None or default == () or "{}" in str(default):
        return text
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    return f"{text} (default {shown})"


def _default(cls: type, name: str) -> Any:
    (field,) = (f for f in dataclasses.fields(cls) if f.name == name)
    return None if field.default is dataclasses.MISSING else field.default


def _reader(kind: Any, known: Setting) -> Callable[[str], Any]:
    if known.parse is not None:
        return _said(known.parse)
    if kind is int:
        return lambda text: _number(text, int, known, "a whole number")
    if kind is float:
        return lambda text: _number(text, float, known, "a number")
    return str


def _number(text: str, kind: type, known: Setting, what: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not known.accepts(value):
        wanted = " ".join(filter(None, (what, known.wanted)))
        raise argparse.ArgumentTypeError(f"must be {wanted}, got {text!r}")
    return value


def _said(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """``parse`` as the type of an argument: argparse would drop what a UserError says."""

    def read(text: str) -> Any:
        try:
            return parse(text)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def count(text: str) -> int:
    """A whole number of at least 1; up to LARGEST."""
    return _number(text, int, COUNT, "a count")


def whole(text: str) -> int:
    """A whole number of at least 0, below 2^32."""
    return _number(text, int, Setting("", least=0, below=2**32), "a whole number")


def named(text: str) -> str:
    """A text that names something: not empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"must name something, got {text!r}")
    return text


def path(text: str) -> Path:
    """A path on this machine, not empty: Path("") would be the current folder."""
    if "://" in named(text):
        from fastdigin.results.folder import check_local

        _said(check_local)(text)
    return Path(text)


def list_of(read: Callable[[str], Any]) -> Callable[[str], list]:
    """A type of argument: the parts of "a, b", each read; at least one."""

    def parts(text: str) -> list:
        found = [read(part.strip()) for part in text.split(",") if part.strip()]
        if not found:
            raise argparse.ArgumentTypeError("is empty: name at least one, separated by commas")
        return found

    return parts


comma_list = list_of(str)
