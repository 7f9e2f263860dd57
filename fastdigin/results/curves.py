"""Line charts over the iterations: where their lines, ticks and labels lie, for curve.html."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 300, 150
LEFT, RIGHT, TOP, BOTTOM = 40, 10, 24, 32

Series = tuple[str, Sequence[float | None]]


@dataclass(frozen=True)
class Label:
    """Text at a place; anchor: its end that lies there, as in SVG."""

    x: float
    y: float
    text: str
    anchor: str = "end"


@dataclass(frozen=True)
class Line:
    """A series as an SVG path, its dot at the best iteration, and its name. tone: its colour."""

    tone: int
    path: str
    dot: tuple[float, float] | None
    name: Label | None


@dataclass(frozen=True)
class Curve:
    """One chart. best: the label of the best iteration, which is marked by a dashed line."""

    label: str
    told: str
    lines: list[Line]
    values: list[Label]
    iterations: list[Label]
    best: Label | None
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM
    size: tuple[int, int] = field(default=(WIDTH, HEIGHT))


def curve(
    label: str, series: Sequence[Series], best: int | None, *, share: bool = False, tone: int = 0
) -> Curve | None:
    """A chart, or None where there is no value to draw.

    label: names the vertical axis and its unit; the horizontal one is iterations. series: (name,
    values per iteration from 0); None leaves a gap. best: the iteration that is marked. share:
    fixes the axis to 0-100%. tone: the first line's colour.
    """
    values = [v for _, line in series for v in line if v is not None]
    if not values:
        return None
    last = max(len(line) for _, line in series) - 1
    low, high, ticks = (0.0, 1.0, [0.0, 0.5, 1.0]) if share else _axis(min(values), max(values))
    marked = best if best is not None and 0 <= best <= last else None

    def x(iteration: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (iteration / last if last else 0.5), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low), 1)

    lines, names = [], _names([name for name, _ in series])
    for index, ((_, line), name) in enumerate(zip(series, names, strict=True), start=tone):
        points = [None if v is None else (x(i), y(v)) for i, v in enumerate(line)]
        dot = points[marked] if marked is not None and marked < len(points) else None
        lines.append(Line(index % 4, _path(points), dot, name))
    told = f"{label} over {last + 1} iterations"
    return Curve(
        label,
        told if marked is None else f"{told}, best at iteration {marked}",
        lines,
        [
            Label(LEFT - 6, y(t), f"{100 * t:.0f}%" if share else _tick_text(t, ticks))
            for t in ticks
        ],
        *_iteration_labels(x, last, marked),
    )


def _iteration_labels(x, last: int, marked: int | None) -> tuple[list[Label], Label | None]:
    y = HEIGHT - BOTTOM + 13
    best = None
    if marked is not None:
        left, right = x(marked) < LEFT + 24, x(marked) > WIDTH - 34
        anchor = "start" if left else "end" if right else "middle"
        best = Label(x(marked), y, f"best: {marked}", anchor)
    # The label of the best iteration is about 45 units wide; an end tick gives way to it.
    ends = [
        Label(x(tick), y, str(tick), anchor)
        for tick, anchor in ((0, "middle"), (last, "end"))[: 1 if last == 0 else 2]
        if best is None or abs(x(tick) - best.x) > 46
    ]
    return ends, best


def _names(names: Sequence[str]) -> list[Label | None]:
    """A legend from the right; a single series needs none."""
    if len(names) < 2:
        return [None] * len(names)
    labels: list[Label | None] = []
    right = float(WIDTH - RIGHT)
    for name in reversed(names):
        shown = name if len(name) <= 12 else name[:11] + "…"
        labels.append(Label(round(right, 1), 11, shown))
        right -= 6.2 * len(shown) + 10
    return labels[::-1]


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    commands, pen_down = [], False
    for point in points:
        if point is not None:
            # A zero-length segment with round caps shows a value between two gaps as a dot.
            start, rest = ("L", "") if pen_down else ("M", "h0")
            commands.append(f"{start}{point[0]} {point[1]}{rest}")
        pen_down = point is not None
    return "".join(commands)


def _axis(low: float, high: float) -> tuple[float, float, list[float]]:
    """Axis limits and ticks at multiples of 1, 2 or 5 times a power of ten, three to six ticks."""
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-9):
        pad = abs(high) / 2 or 0.5
        low, high = low - pad, high + pad
    rough = (high - low) / 3
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= rough * 0.999)
    first, final = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [k * step for k in range(first, final + 1)]
    return ticks[0], ticks[-1], ticks


def _tick_text(tick: float, ticks: Sequence[float]) -> str:
    largest, step = max(map(abs, ticks)), ticks[1] - ticks[0]
    if largest >= 1e5 or step < 1e-3:
        return f"{tick:.0e}" if tick else "0"
    return f"{tick:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
