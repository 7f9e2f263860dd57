"""Measured figures: a value, its n, its 95% interval and, where one was set, its target."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fastdigin.report.console import table
from fastdigin.results.numbers import number, wilson_interval

RESAMPLES = 2_000
Unit = Literal["share", "points", "dB", ""]


@dataclass(frozen=True)
class Target:
    """What a figure should reach, in the figure's own unit."""

    kind: Literal["at least", "at most"]
    bound: float

    def met(self, value: float) -> bool:
        return value >= self.bound if self.kind == "at least" else value <= self.bound


def at_least(bound: float) -> Target:
    """Met by values of ``bound`` or more."""
    return Target("at least", bound)


def at_most(bound: float) -> Target:
    """Met by values of ``bound`` or less."""
    return Target("at most", bound)


@dataclass(frozen=True)
class Figure:
    """value: None where n is 0; a share lies in [0, 1]. interval: 95%, None where unknown."""

    name: str
    value: float | None
    n: int
    interval: tuple[float, float] | None
    target: Target | None = None
    unit: Unit = ""

    @property
    def met(self) -> bool | None:
        """Whether the value reaches the target; None where either is missing."""
        if self.target is None or self.value is None:
            return None
        return self.target.met(self.value)

    def show(self) -> str:
        """The value with its interval and n, for a cell of a table."""
        if self.value is None:
            return "-"
        ends = [_number(end, self.unit) for end in self.interval or ()]
        interval = f"{' to '.join(ends)}, " if ends else ""
        return f"{_with_unit(self.value, self.unit)} ({interval}n = {self.n})"

    def show_target(self) -> str:
        """Such as "at least 96.0%"; empty without a target."""
        if self.target is None:
            return ""
        return f"{self.target.kind} {_with_unit(self.target.bound, self.unit)}"

    def plain(self) -> dict[str, Any]:
        """JSON values, rounded to four decimals."""
        return {
            "name": self.name,
            "value": None if self.value is None else round(self.value, 4),
            "n": self.n,
            "interval": self.interval and [round(end, 4) for end in self.interval],
            "target": self.show_target() or None,
            "met": self.met,
        }


def rate(name: str, hits: Iterable[bool], target: Target | None = None) -> Figure:
    """The share of hits, with Wilson's interval."""
    hits = list(hits)
    return share(name, sum(hits) / len(hits) if hits else None, len(hits), target)


def share(name: str, value: float | None, n: int, target: Target | None = None) -> Figure:
    """A share of n cases that was counted before, with Wilson's interval."""
    interval = None if value is None else wilson_interval(round(value * n), n)
    return Figure(name, value, n, interval, target, "share")


def mean(
    name: str, values: Iterable[float], target: Target | None = None, unit: Unit = ""
) -> Figure:
    """The mean, with a bootstrap interval."""
    values = list(values)
    return ratio(name, values, [1.0] * len(values), target, unit)


def ratio(
    name: str,
    numerators: Sequence[float],
    denominators: Sequence[float],
    target: Target | None = None,
    unit: Unit = "",
) -> Figure:
    """Mean of the numerators / mean of the denominators, which come in pairs.

    The interval is the bootstrap's (percentiles over resampled pairs, always the same draws).
    """
    n = len(numerators)
    if n == 0:
        return Figure(name, None, 0, None, target, unit)
    above, below = np.asarray(numerators, float), np.asarray(denominators, float)
    interval = None
    if n > 1:
        rows = np.random.default_rng(0).integers(n, size=(RESAMPLES, n))
        resampled = above[rows].sum(axis=1) / below[rows].sum(axis=1)
        low, high = np.percentile(resampled, [2.5, 97.5])
        interval = float(low), float(high)
    return Figure(name, float(above.sum() / below.sum()), n, interval, target, unit)


def figures_table(figures: Sequence[Figure]) -> str:
    """A row a figure."""
    met = {None: "", True: "yes", False: "NO"}
    rows = [[f.name, f.show(), f.show_target(), met[f.met]] for f in figures]
    return table(["figure", "value", "target", "met"], rows)


def _number(value: float, unit: Unit) -> str:
    return f"{100 * value:.1f}%" if unit == "share" else number(value)


def _with_unit(value: float, unit: Unit) -> str:
    return _number(value, unit) if unit == "share" else f"{_number(value, unit)} {unit}".rstrip()
