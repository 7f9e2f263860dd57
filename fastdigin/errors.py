"""The exceptions for mistakes a user can mend."""

import sys
from collections.abc import Callable, Collection
from functools import wraps


def visible(text: str) -> str:
    """``text`` with escapes for control characters: the name of a file must steer no terminal."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


class UserError(ValueError):
    """Bad input. The message names the argument, its value and the mend.

    The command line prints it and exits with 2; library callers catch it as a ``ValueError``.
    """

    def __str__(self) -> str:
        return visible(super().__str__())


class CannotWrite(UserError):
    """Results that could not be written, on a full disk say. The command line exits with 1."""


class Missing(UserError):
    """Something that is not on this machine. command: gets it, where there is a connection."""

    def __init__(self, message: str, command: str):
        super().__init__(message)
        self.command = command


class MissingFiles(Missing):
    """Files of a network that are not here and could not be had."""


class MissingPackage(Missing):
    """A Python package that is not installed."""


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """UserError unless the argument ``name`` has one of the values ``choices``."""
    if value not in choices:
        raise UserError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}.")


def exits_with_code(main: Callable[..., int | None]) -> Callable[..., int]:
    """Decorates the ``main`` of a module that is a command of its own: its exit code.

    0 where it returns nothing; 2 after a UserError, of which one line is printed.
    """

    @wraps(main)
    def run(*arguments) -> int:
        try:
            return main(*arguments) or 0
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return run
