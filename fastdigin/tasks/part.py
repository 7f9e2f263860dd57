"""One task of a command, ready to run: the shape that the command line works through."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastdigin.tasks.explanation import Explanation


@dataclass(frozen=True)
class Part:
    """task: for the store. settings: for run.json. jobs: how many there are in all.

    run: called with the ids that are already done and a callback for progress (shares of one
    job); yields Explanations as jobs finish.
    """

    task: str
    settings: Mapping[str, Any]
    jobs: int
    run: Callable[[Collection[str], Callable[[float], None]], Iterator[Explanation]]
