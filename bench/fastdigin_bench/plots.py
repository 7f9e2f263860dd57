"""Plots of the benches, as PNG."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

Points = Sequence[tuple[float, float]]


def lines(path: Path, series: Mapping[str, Points], x: str, y: str, title: str) -> None:
    """One line with markers for each name, from zero up."""
    pyplot = _pyplot(path)
    if pyplot is None:
        return
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    _draw(axes, series, x, y, title)
    axes.legend()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def panels(path: Path, panels: Mapping[str, tuple[str, str, Points]]) -> None:
    """Side by side, for each title (x label, y label, points): one line from zero up."""
    pyplot = _pyplot(path)
    if pyplot is None:
        return
    figure, row = pyplot.subplots(
        1, len(panels), figsize=(4 * len(panels), 3.4), layout="constrained", squeeze=False
    )
    for axes, (title, (x, y, points)) in zip(row[0], panels.items(), strict=True):
        _draw(axes, {title: points}, x, y, title)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _draw(axes, series: Mapping[str, Points], x: str, y: str, title: str) -> None:
    for name, points in series.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xlabel=x, ylabel=y, title=title, xlim=(0, None), ylim=(0, None))
    axes.grid(alpha=0.3)


def _pyplot(path: Path):
    """matplotlib without a screen. None, and a word on stderr, where it is missing."""
    try:
        import matplotlib
    except ImportError:
        print(f"no {path.name}: pip install matplotlib", file=sys.stderr)
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
