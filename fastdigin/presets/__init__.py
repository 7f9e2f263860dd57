"""Presets: the options of one experiment each, as JSON files beside this one.

A file has the ``command`` it is for, what it is ``about``, its ``usage``, the ``options`` it sets
(names of the command line without dashes; a list is given several times; the preset among them is
one of the algorithm) and ``notes``, which say
where the values come from and what is not known.

Presets of the algorithm (algorithms.py) say how results are computed. They combine with an
experiment's and with each other: ``--preset`` may be given several times.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastdigin.errors import UserError
from fastdigin.presets.algorithms import (
    EXACT,
    FAST,
    Algorithm,
    algorithm_names,
    load_algorithm,
)

__all__ = [
    "EXACT",
    "FAST",
    "Algorithm",
    "Preset",
    "algorithm_names",
    "any_preset",
    "expand",
    "list_presets",
    "load_algorithm",
    "load_preset",
    "preset_names",
    "wants_list",
]

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Preset:
    """The contents of a preset's file."""

    name: str
    command: str
    about: str
    usage: str
    options: dict[str, Any]
    notes: tuple[str, ...]

    def arguments(self, given: Sequence[str] = ()) -> list[str]:
        """Its options as words of a command line, without those that ``given`` names itself."""
        own = {word.split("=")[0] for word in given if word.startswith("--")}
        words = []
        for option, value in self.options.items():
            if f"--{option}" in own and option != "preset":  # those of the algorithm combine
                continue
            for each in value if isinstance(value, list) else [value]:
                words += [f"--{option}", str(each)]
        return words

    def describe(self) -> str:
        """What it sets, and why, for people."""
        lines = [f"{self.name}: {self.about}", "", f"  {self.usage}", ""]
        width = max(len(option) for option in self.options)
        for option, value in self.options.items():
            shown = " ".join(map(str, value)) if isinstance(value, list) else value
            lines.append(f"  --{option:<{width}}  {shown}")
        return "\n".join([*lines, "", *(f"  {note}" for note in self.notes)])


def preset_names() -> tuple[str, ...]:
    """The names of all experiments' presets, sorted."""
    return tuple(sorted(file.stem for file in _FOLDER.glob("*.json")))


def load_preset(name: str) -> Preset:
    """The preset of that name; UserError with near matches where there is none."""
    names = preset_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=3)
        hint = f"did you mean {' or '.join(close)}" if close else f"the presets: {', '.join(names)}"
        raise UserError(f"preset {name!r} does not exist; {hint}")
    content = json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return Preset(name=name, **content | {"notes": tuple(content["notes"])})


def any_preset(name: str) -> Preset | Algorithm:
    """The preset of that name, of an experiment or of the algorithm."""
    return load_algorithm(name) if name in algorithm_names() else load_preset(name)


def list_presets() -> str:
    """One line per preset, for people."""
    names = preset_names() + algorithm_names()
    width = max(map(len, names))
    return "\n".join(f"{name:<{width}}  {any_preset(name).about}" for name in names)


def wants_list(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for ``--preset list``."""
    return "list" in _presets_of(arguments)


def expand(arguments: Sequence[str]) -> list[str]:
    """The command line with the options of its --preset put in; says on stderr what was set.

    Options that are given keep their values. Raises UserError for an unknown preset and for one of
    another command.
    """
    arguments = list(arguments)
    names = [name for name in _presets_of(arguments) if name not in algorithm_names()]
    if not names or arguments[0] == "doctor":
        return arguments
    if len(names) > 1:
        raise UserError(
            f"--preset {' and --preset '.join(names)} are of different experiments: name one of "
            f"them, and of the algorithm's as many as you like ({', '.join(algorithm_names())})"
        )
    (name,) = names
    preset = load_preset(name)
    if arguments[0] != preset.command:
        raise UserError(
            f"--preset {name} is for fastdigin {preset.command}, not for fastdigin {arguments[0]}: "
            f"{preset.usage}"
        )
    words = preset.arguments(arguments)
    print(f"preset {name} sets {' '.join(words)}", file=sys.stderr)
    # Before what is given, of which a list of images may be the end.
    return [arguments[0], *words, *arguments[1:]]


def _presets_of(arguments: Sequence[str]) -> list[str]:
    names = []
    for word, after in zip(arguments, [*arguments, ""][1:], strict=True):
        if word.startswith("--preset="):
            names.append(word.removeprefix("--preset="))
        elif word == "--preset" and after:
            names.append(after)
    return names
