"""Line charts over the iterations: where their lines and labels lie, in percent of the plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastdigin.results.numbers import percent

Values = Sequence[float | None]


@dataclass(frozen=True)
class Line:
    """A series as an SVG path, and its dot at the best iteration."""

    name: str
    path: str
    dot: tuple[float, float] | None


@dataclass(frozen=True)
class Curve:
    """One chart, whose horizontal axis is iterations 0 to ``last``.

    ticks: (height, text). best: the iteration that is marked, at ``best_at``. tone: the first
    line's colour.
    """

    label: str
    lines: list[Line]
    ticks: list[tuple[float, str]]
    last: int
    best: int | None
    best_at: float | None
    tone: int


def curve(
    label: str,
    series: Mapping[str, Values],
    best: int | None,
    *,
    share: bool = False,
    tone: int = 0,
) -> Curve | None:
    """A chart, or None where there is no value to draw.

    label: names the vertical axis and its unit. series: name -> values per iteration from 0; None
    leaves a gap. best: the iteration to mark. share: fixes the axis to 0-100%.
    """
    values = [value for line in series.values() for value in line if value is not None]
    if not values:
        return None
    last = max(map(len, series.values())) - 1
    ticks = [0.0, 0.5, 1.0] if share else _ticks(min(values), max(values))
    low, span = ticks[0], ticks[-1] - ticks[0]
    if best is not None and not 0 <= best <= last:
        best = None

    def x(iteration: int) -> float:
        return round(100 * iteration / last, 1) if last else 50.0

    def y(value: float) -> float:
        return round(100 * (value - low) / span, 1)

    lines = []
    for name, line in series.items():
        points = [None if value is None else (x(i), y(value)) for i, value in enumerate(line)]
        dot = points[best] if best is not None and best < len(points) else None
        lines.append(Line(name, _path(points), dot))
    told = [(y(tick), percent(tick) if share else f"{tick:g}") for tick in ticks]
    return Curve(label, lines, told, last, best, None if best is None else x(best), tone)


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    commands, pen_down = [], False
    for point in points:
        if point is not None:
            # A zero-length segment with round caps shows a value between two gaps as a dot.
            start, rest = ("L", "") if pen_down else ("M", "h0")
            commands.append(f"{start}{point[0]} {round(100 - point[1], 1)}{rest}")
        pen_down = point is not None
    return "".join(commands)


def _ticks(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten around the values, three to six of them."""
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-9):
        pad = abs(high) / 2 or 0.5
        low, high = low - pad, high + pad
    rough = (high - low) / 3
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= rough * 0.999)
    first, final = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{k * step:.6g}") for k in range(first, final + 1)]
