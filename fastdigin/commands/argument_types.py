"""The types of arguments: what text they accept, and what they say of any other."""

from __future__ import annotations

import argparse
import sys


def whole(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, got {text!r}")
    return int(text)


def count(text: str) -> int:
    """A whole number of at least 1, as the type of an argument."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a count of at least 1, got {text!r}")
    return int(text)


def at_least_0(text: str) -> float:
    """A finite number of at least 0."""
    return _number(text, 0.0, "of at least 0")


def above_0(text: str) -> float:
    """A finite number above 0."""
    return _number(text, sys.float_info.min, "above 0")


def _number(text: str, least: float, words: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not least <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number {words}, got {text!r}")
    return value


def probability(text: str) -> float:
    """A number between 0 and 1, neither of them."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be a number between 0 and 1, got {text!r}")
    return value


def comma_list(text: str) -> list[str]:
    """The parts of "a, b"; at least one."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise argparse.ArgumentTypeError("is empty: name at least one, separated by commas")
    return parts
