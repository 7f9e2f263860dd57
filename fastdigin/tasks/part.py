"""One task of a command, ready to run: the shape that the command line works through."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastdigin.tasks.explanation import Explanation
from fastdigin.tasks.inputs import ImageInput


@dataclass(frozen=True)
class Part:
    """task: for the store. settings: for run.json. ids: of all its jobs, in their order.

    run: called with the ids not to do and a callback for progress (shares of one job); raises
    UserError at once, or returns an iterator of Explanations, as jobs finish.
    inputs: job id -> the user's photo; a finished job of another photo is not taken for this one.
    """

    task: str
    settings: Mapping[str, Any]
    ids: Sequence[str]
    run: Callable[[Collection[str], Callable[[float], None]], Iterator[Explanation]]
    inputs: Mapping[str, ImageInput] = field(default_factory=dict)
