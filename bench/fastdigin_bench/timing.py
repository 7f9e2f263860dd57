"""Times to compare: taken in turns, shown as medians, with the range of the extremes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from fastdigin_bench.output import say

Key = TypeVar("Key")


@dataclass(frozen=True)
class Ratio:
    """How many times as long one thing takes as another; low and high are of the extremes."""

    factor: float
    low: float
    high: float

    @classmethod
    def of(cls, slow: Sequence[float], fast: Sequence[float]) -> Ratio:
        return cls(
            median(slow) / median(fast), min(slow) / max(fast), max(slow) / min(fast)
        )  # fmt: skip


def seconds_of(function: Callable[[], object]) -> float:
    """How long a call takes by the clock."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def time_in_turns(
    functions: Mapping[Key, Callable[[], object]], repeats: int
) -> dict[Key, list[float]]:
    """Seconds of every repeat, after one run of each that nobody times.

    Each repeat begins with another one: what runs after what was seen to cost some percent.
    """
    for function in functions.values():
        function()
    found: dict[Key, list[float]] = {name: [] for name in functions}
    order = list(functions)
    for repeat in range(repeats):
        for name in order[repeat % len(order) :] + order[: repeat % len(order)]:
            found[name].append(seconds_of(functions[name]))
            say(f"{name}: {found[name][-1]:.2f} s")
    return found
