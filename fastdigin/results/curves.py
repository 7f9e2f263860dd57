"""Line charts over the iterations, as places in the drawing of templates/card.html."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastdigin.results.numbers import percent

Values = Sequence[float | None]
LEFT, RIGHT, TOP, BOTTOM = 40, 290, 24, 118  # of the plot


@dataclass(frozen=True)
class Curve:
    """One chart, whose horizontal axis is iterations 0 to ``last``.

    lines: (name, SVG path, its dot at the best iteration). ticks: (y, text). best: the iteration
    that is marked, at x = ``best_at``.
    """

    label: str
    lines: list[tuple[str, str, tuple[float, float] | None]]
    ticks: list[tuple[float, str]]
    last: int
    best: int | None
    best_at: float | None


def curve(
    label: str, series: Mapping[str, Values], best: int | None, *, share: bool = False
) -> Curve | None:
    """A chart, or None where there is no value to draw.

    label: names the vertical axis and its unit. series: name -> values per iteration from 0; None
    leaves a gap. best: the iteration to mark. share: fixes the axis to 0-100%.
    """
    values = [value for line in series.values() for value in line if value is not None]
    if not values:
        return None
    last = max(map(len, series.values())) - 1
    low, high = (0.0, 1.0) if share else (min(values), max(values))
    if low == high:
        low, high = low - (abs(low) or 1.0), high + (abs(high) or 1.0)
    best = best if best is not None and 0 <= best <= last else None

    def x(iteration: int) -> float:
        return round(LEFT + (RIGHT - LEFT) * (iteration / last if last else 0.5), 1)

    def y(value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low), 1)

    lines = []
    for name, line in series.items():
        points = [None if value is None else (x(i), y(value)) for i, value in enumerate(line)]
        dot = points[best] if best is not None and best < len(points) else None
        lines.append((name, _path(points), dot))
    ticks = [
        (y(value), percent(value) if share else f"{value:.3g}")
        for value in (low, (low + high) / 2, high)
    ]
    return Curve(label, lines, ticks, last, best, None if best is None else x(best))


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    commands = ""
    for before, point in zip([None, *points], points, strict=False):
        if point is not None:
            # A zero-length segment with round caps shows a value between two gaps as a dot.
            commands += "{}{} {}{}".format("L" if before else "M", *point, "" if before else "h0")
    return commands
