"""Line charts over the iterations as inline SVG, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 300, 150
LEFT, RIGHT, TOP, BOTTOM = 40, 10, 24, 32

Series = tuple[str, Sequence[float | None]]


def curve(label: str, series: Sequence[Series], best: int | None, *, share: bool = False,
          tone: int = 0) -> str:
    """One chart: ``label`` names the vertical axis and its unit, the horizontal one is iterations.

    ``series`` are (name, values per iteration from 0); None leaves a gap. ``best`` is marked with
    a line and dots. ``share`` fixes the axis to 0-100%; ``tone`` is the first line's colour.
    Returns '' when there is no value to draw.
    """
    values = [v for _, line in series for v in line if v is not None]
    if not values:
        return ""
    last = max(len(line) for _, line in series) - 1
    low, high, ticks = (0.0, 1.0, [0.0, 0.5, 1.0]) if share else _axis(min(values), max(values))

    def x(iteration: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (iteration / last if last else 0.5)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)

    parts = [f'<text class="axis" x="0" y="11">{escape(label)}</text>']
    if len(series) > 1:
        parts.append(_legend([name for name, _ in series], tone))
    for tick in ticks:
        shown = f"{100 * tick:.0f}%" if share else _tick_text(tick, ticks)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" '
                     f'y2="{y(tick):.1f}"/><text class="tick" x="{LEFT - 6}" '
                     f'y="{y(tick) + 3.5:.1f}" text-anchor="end">{shown}</text>')
    marked = best if best is not None and 0 <= best <= last else None
    if marked is not None:
        parts.append(f'<line class="best" x1="{x(marked):.1f}" x2="{x(marked):.1f}" y1="{TOP}" '
                     f'y2="{HEIGHT - BOTTOM}"/>')
    parts += _iteration_ticks(x, last, marked)
    for index, (_, line) in enumerate(series, start=tone):
        points = [None if v is None else (x(i), y(v)) for i, v in enumerate(line)]
        parts.append(f'<path class="line s{index % 4}" d="{_path(points)}"/>')
        dots = [points[marked]] if marked is not None and marked < len(points) else []
        parts += [f'<circle class="dot s{index % 4}" cx="{p[0]:.1f}" cy="{p[1]:.1f}" r="3.4"/>'
                  for p in dots if p is not None]
    told = f"{label} over {last + 1} iterations" + (
        "" if marked is None else f", best at iteration {marked}")
    return (f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{escape(told)}">{"".join(parts)}</svg>')


def _iteration_ticks(x, last: int, marked: int | None) -> list[str]:
    bottom = HEIGHT - BOTTOM + 13
    parts = []
    if marked is not None:
        anchor = "start" if x(marked) < LEFT + 24 else "end" if x(marked) > WIDTH - 34 else "middle"
        parts.append(f'<text class="tick marked" x="{x(marked):.1f}" y="{bottom}" '
                     f'text-anchor="{anchor}">best: {marked}</text>')
    for tick, anchor in ((0, "middle"), (last, "end")):
        # The label of the best iteration is about 45 units wide; an end tick gives way to it.
        if marked is None or abs(x(tick) - x(marked)) > 46:
            parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{bottom}" '
                         f'text-anchor="{anchor}">{tick}</text>')
        if last == 0:
            break
    parts.append(f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" '
                 'text-anchor="middle">iteration</text>')
    return parts


def _legend(names: Sequence[str], tone: int) -> str:
    parts, right = [], WIDTH - RIGHT
    for index, name in reversed(list(enumerate(names, start=tone))):
        shown = name if len(name) <= 12 else name[:11] + "…"
        parts.append(f'<text class="name s{index % 4}" x="{right}" y="11" text-anchor="end">'
                     f'{escape(shown)}</text>')
        right -= 6.2 * len(shown) + 10
    return "".join(parts)


def _path(points) -> str:
    commands, pen_down = [], False
    for point in points:
        if point is not None:
            # A zero-length segment with round caps shows a value between two gaps as a dot.
            commands.append(f"{'L' if pen_down else 'M'}{point[0]:.1f} {point[1]:.1f}"
                            + ("" if pen_down else "h0"))
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
