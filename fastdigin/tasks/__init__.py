"""The tasks. Each is one file with a subclass of :class:`fastdigin.tasks.task.Task`.

``register`` adds a task of one's own; a task that comes with the package is a line of _BUILT_IN.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes seconds, and a list of commands needs none of it
    from fastdigin.tasks.task import Task

# Command -> (module, class, summary for people).
_BUILT_IN = {
    "counterfactual": (
        "counterfactual", "Counterfactuals", "what must change for the classifier to say TARGET",
    ),
    "disagree": ("disagreement", "Disagreements", "images that F is sure of and G denies"),
    "neurons": ("neurons", "NeuronVisualisations", "images that make single neurons fire"),
    "neuron-counterfactual": (
        "neuron_counterfactual", "NeuronCounterfactuals", "change what a neuron sees, keep the "
        "object",
    ),
}  # fmt: skip
_REGISTERED: dict[str, type[Task]] = {}


def register(task: type[Task]) -> type[Task]:
    """Makes a task a command, under its name, and its records known; for use as a decorator.

    Args:
        task: a subclass of :class:`fastdigin.Task` with a name.

    Returns:
        The task, as it is.

    Example:
        >>> @fd.register
        ... @dataclass(kw_only=True)
        ... class Brightness(fd.Task):
        ...     name = "brightness"
    """
    from fastdigin.results import register as register_records

    register_records(task.record_type)
    _REGISTERED[task.name] = task
    return task


def summaries() -> dict[str, str]:
    """Command -> what the task does, in one line."""
    found = {command: summary for command, (_, _, summary) in _BUILT_IN.items()}
    for command, task in _REGISTERED.items():
        found[command] = inspect.getdoc(task).splitlines()[0].rstrip(".")
    return found


def find(command: str) -> type[Task]:
    """The task behind a command. Raises KeyError where there is none."""
    if command in _REGISTERED:
        return _REGISTERED[command]
    module, name, _ = _BUILT_IN[command]
    return getattr(import_module(f"fastdigin.tasks.{module}"), name)
