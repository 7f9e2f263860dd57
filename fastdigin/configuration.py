"""Settings: frozen dataclasses whose fields say what they mean and what they accept.

A field made by :func:`setting` carries its help text and its bounds. They are written once: the
class checks its values by them (:func:`check_settings`), and the command line makes its options of
them (commands/options.py).
"""

import dataclasses
import inspect
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastdigin.errors import UserError

_SETTING = "fastdigin"
LARGEST = 10**6
"""The most of whatever is counted and has no bound of its own: more is a slip of the finger."""
_UNIONS = (typing.Union, types.UnionType)


@dataclass(frozen=True)
class Setting:
    """What is known of a field beside its type and its default.

    help: for people, without a full stop. least, most: inclusive bounds; above, below: exclusive.
    flag: of the command line, where it is not the field's name; None for no option. metavar: of
    the value in help texts. flat: the options of nested settings are not named after the field.
    parse: reads a value from the command line, where its type does not say how.
    """

    help: str
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    flag: str | None = ""
    metavar: str | None = None
    flat: bool = False
    parse: Callable[[str], Any] | None = None

    @property
    def wanted(self) -> str:
        """The bounds in words: "at least 1 and below 2"."""
        bounds = (
            ("at least", self.least), ("above", self.above),
            ("at most", self.most), ("below", self.below),
        )  # fmt: skip
        return " and ".join(f"{words} {bound:.12g}" for words, bound in bounds if bound is not None)

    def accepts(self, number: float) -> bool:
        """Whether a number is finite and within the bounds."""
        return (
            abs(number) <= sys.float_info.max  # not NaN; and larger integers are no floats
            and (self.least is None or number >= self.least)
            and (self.most is None or number <= self.most)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )


COUNT = Setting("", least=1, most=LARGEST)


def setting(default: Any, help: str, **known: Any) -> Any:
    """A dataclass field with a default and what :class:`Setting` says of it."""
    metadata = {_SETTING: Setting(help, **known)}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def settings_of(cls: type) -> dict[str, tuple[Any, Setting]]:
    """Field name -> (its type, what is known of it), of the fields made by :func:`setting`."""
    types_of = typing.get_type_hints(cls)
    return {
        field.name: (types_of[field.name], _bounded(types_of[field.name], field.metadata[_SETTING]))
        for field in dataclasses.fields(cls)
        if _SETTING in field.metadata
    }


def _bounded(kind: Any, known: Setting) -> Setting:
    free = optional(kind)[0] is int and known.most is None and known.below is None
    return dataclasses.replace(known, most=LARGEST) if free else known


def check_settings(settings: Any) -> None:
    """Raises UserError for the first value that its field's type or bounds do not accept."""
    for name, (kind, known) in settings_of(type(settings)).items():
        check_value(name, getattr(settings, name), kind, known)


def documented(cls: type) -> type:
    """Adds the Args section to the docstring of a settings class or task; for use as a decorator.

    It stands before the section Raises, and is made of the help texts of the fields
    (:func:`setting`, ``fastdigin.tasks.task.given``).
    """
    lines = []
    for field in dataclasses.fields(cls):
        for known in field.metadata.values():
            bounds = f" ({known.wanted})" if getattr(known, "wanted", "") else ""
            line = f"    {field.name}: {known.help}{bounds}."
            lines.append(textwrap.fill(line, 100, subsequent_indent=" " * 8))
    text = inspect.cleandoc(cls.__doc__ or "")
    cls.__doc__ = text.replace("Raises:\n", "\n".join(["Args:", *lines, "", "Raises:", ""]), 1)
    return cls


def optional(kind: Any) -> tuple[Any, bool]:
    """(the type without None, whether None was among it)."""
    if typing.get_origin(kind) not in _UNIONS:
        return kind, False
    others = [part for part in typing.get_args(kind) if part is not type(None)]
    return (others[0] if len(others) == 1 else kind), len(others) < len(typing.get_args(kind))


def choices(kind: Any) -> tuple[Any, ...]:
    """The values of a Literal; () for any other type."""
    return typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()


def element(kind: Any) -> Any:
    """The type of the elements of tuple[X, ...]; None for any other type."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else None


def plain(value: Any) -> Any:
    """Settings as JSON values, nested ones included; other objects as their text."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def check_value(name: str, value: Any, kind: Any, known: Setting) -> None:
    """Raises UserError unless ``value`` is of a type and within the bounds of a setting."""
    kind, may_be_none = optional(kind)
    if value is None and may_be_none:
        return
    # Of a union of numbers and small dataclasses the latter check themselves.
    if typing.get_origin(kind) in _UNIONS:
        if isinstance(value, tuple(filter(dataclasses.is_dataclass, typing.get_args(kind)))):
            return
        kind = float
    if item := element(kind):
        require(isinstance(value, (tuple, list)), name, value, "a tuple")
        for each in value:
            check_value(name, each, item, known)
    elif values := choices(kind):
        require(value in values, name, value, "one of " + ", ".join(map(str, values)))
    elif kind in (int, float):
        whole = isinstance(value, int) and not isinstance(value, bool)
        number = whole or (kind is float and isinstance(value, float))
        what = "a whole number" if kind is int else "a number"
        require(number, name, value, what)
        require(known.accepts(value), name, value, known.wanted or "finite")
    elif isinstance(kind, type):
        require(isinstance(value, kind), name, value, f"of type {kind.__name__}")


def require(condition: bool, name: str, value: Any, wanted: str) -> None:
    """UserError with the argument, its value and what is wanted, unless the condition holds."""
    if not condition:
        raise UserError(f"{name} must be {wanted}, got {value!r}")
