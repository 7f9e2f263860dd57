"""Measured figures: a value, its n, its 95% interval and, where one was set, its target."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fastdigin.results.numbers import number, wilson_interval

RESAMPLES = 2_000
Unit = Literal["share", "points", "dB", ""]
Value = bool | float | tuple[float, float] | None


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
        ends = " to ".join(_number(end, self.unit) for end in self.interval or ())
        return f"{_with_unit(self.value, self.unit)} ({ends}{', ' * bool(ends)}n = {self.n})"

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


def figure(
    name: str, values: Iterable[Value], target: Target | None = None, unit: Unit = ""
) -> Figure:
    """The figure of some cases, without those that are None.

    Truth values make the share of those that hold, with Wilson's interval. Numbers make their
    mean, pairs mean over mean, with the bootstrap's interval (percentiles over resampled cases,
    always the same draws).
    """
    values = [value for value in values if value is not None]
    n = len(values)
    if n == 0:
        return Figure(name, None, 0, None, target, unit)
    if isinstance(values[0], bool):
        return share(name, sum(values) / n, n, target)
    pairs = np.asarray([v if isinstance(v, tuple) else (v, 1.0) for v in values], float)
    interval = None
    if n > 1:
        above, below = resampled_sums(pairs).T
        low, high = np.percentile(above / below, [2.5, 97.5])
        interval = float(low), float(high)
    above, below = pairs.sum(axis=0)
    return Figure(name, float(above / below), n, interval, target, unit)


def share(name: str, value: float, n: int, target: Target | None = None) -> Figure:
    """A share of n cases that was counted before, with Wilson's interval."""
    return Figure(name, value, n, wilson_interval(round(value * n), n), target, "share")


def resampled_sums(cases_nk: np.ndarray) -> np.ndarray:
    """(RESAMPLES, K) sums of n cases that are drawn with replacement, always the same draws."""
    n = len(cases_nk)
    return cases_nk[np.random.default_rng(0).integers(n, size=(RESAMPLES, n))].sum(axis=1)


def figures_of(rows: Sequence[Mapping[str, Value]], targets: Mapping[str, Target]) -> list[Figure]:
    """A figure for each name in rows that share their names."""
    names = rows[0] if rows else ()
    return [figure(name, [row[name] for row in rows], targets.get(name)) for name in names]


def _number(value: float, unit: Unit) -> str:
    return f"{100 * value:.1f}%" if unit == "share" else number(value)


def _with_unit(value: float, unit: Unit) -> str:
    return _number(value, unit) if unit == "share" else f"{_number(value, unit)} {unit}".rstrip()
