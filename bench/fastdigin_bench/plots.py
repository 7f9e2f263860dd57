"""Plots of the benches, as PNG."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def lines(
    path: Path, series: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str, title: str
) -> None:
    """One line with markers for each name, from zero up. Says so where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        print(f"no {path.name}: pip install matplotlib", file=sys.stderr)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, points in series.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xlabel=x, ylabel=y, title=title, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
