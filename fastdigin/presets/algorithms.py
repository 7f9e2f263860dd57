"""Presets of the algorithm: how results are computed, whatever the experiment.

A file in algorithms/ has what it is ``about``, ``settings`` (task -> field -> value; a dot leads
into nested settings, a list stands for a tuple, and {"most": 10} lowers what is above 10) and
``notes``. Fields that it does not name keep their values, so that it combines with an experiment's
preset and with options.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fastdigin.errors import UserError
from fastdigin.reading import read_text

FOLDER = Path(__file__).parent / "algorithms"
T = TypeVar("T")


@dataclass(frozen=True)
class Algorithm:
    """What changes in the settings of tasks.

    Args:
        name: of the preset, or the file it was read from.
        about: one sentence.
        settings: task -> field -> value; "optimisation.steps" is a field of nested settings.
        notes: where the values come from.

    Example:
        >>> settings = fd.Counterfactuals.default_settings(model)
        >>> fd.counterfactuals(engine, photos, robust, 3, settings=fd.presets.FAST.of(settings))
    """

    name: str
    about: str
    settings: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """What it sets, and why, for people."""
        lines = [
            f"  {task}: {path} = {json.dumps(value)}"
            for task, changes in self.settings.items()
            for path, value in changes.items()
        ]
        notes = [f"  {note}" for note in self.notes]
        return "\n".join([f"{self.name}: {self.about}", "", *lines, "", *notes])

    def of(self, settings: T, task: str = "counterfactual") -> T:
        """``settings`` of the task called ``task`` with the changes.

        Raises:
            UserError: a field that the settings lack, or a value that they do not accept.
        """
        for path, value in self.settings.get(task, {}).items():
            settings = self._changed(settings, path.split("."), _tuples(value))
        return settings

    def _changed(self, settings: Any, path: list[str], value: Any) -> Any:
        name, *rest = path
        if name not in {field.name for field in dataclasses.fields(settings)}:
            raise UserError(
                f"preset {self.name}: {name} is no field of {type(settings).__name__}: remove it"
            )
        before = getattr(settings, name)
        if rest and dataclasses.is_dataclass(before):
            value = self._changed(before, rest, value)
        elif rest or dataclasses.is_dataclass(before):
            told = "holds no settings" if rest else f"holds settings: name one, {name}.FIELD"
            raise UserError(f"preset {self.name}: {name} of {type(settings).__name__} {told}")
        elif isinstance(value, dict):
            if value.keys() != {"most"} or not all(
                isinstance(x, (int, float)) for x in (before, value["most"])
            ):
                raise UserError(f'preset {self.name}: {name} must be a value or {{"most": NUMBER}}')
            value = min(before, value["most"])
        return dataclasses.replace(settings, **{name: value})


def algorithm_names() -> tuple[str, ...]:
    """The names of the packaged ones, sorted."""
    return tuple(sorted(file.stem for file in FOLDER.glob("*.json")))


def load_algorithm(name: str) -> Algorithm:
    """A packaged one by its name, or one of a JSON file; UserError where there is none."""
    file = FOLDER / f"{name}.json" if name in algorithm_names() else Path(name)
    if not file.exists():
        names = ", ".join(algorithm_names())
        raise UserError(
            f"preset {name!r} does not exist: name one of {names}, or a file of settings"
        )
    text = read_text(file, "preset")
    try:
        content = json.loads(text)
        if not all(isinstance(changes, dict) for changes in content["settings"].values()):
            raise TypeError("settings must be {task: {field: value}}")
        return Algorithm(name, content["about"], content["settings"], tuple(content["notes"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"'{file}' is no preset of the algorithm ({error!r}): it needs about, settings, notes"
        ) from None


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


FAST, EXACT = load_algorithm("fast"), load_algorithm("exact")
