"""Plots of the benches, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastdigin_bench.output import say


@dataclass(frozen=True)
class Panel:
    """One diagram. x, y: labels of its axes, which begin at zero. series: name -> points.

    legend: where matplotlib puts it.
    """

    title: str
    x: str
    y: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    legend: str = "best"


def plot(path: Path, panels: Sequence[Panel]) -> None:
    """Draws panels side by side; without matplotlib it says so on stderr and draws nothing."""
    try:
        import matplotlib
    except ImportError:
        say(f"no {path.name}: pip install matplotlib")
        return
    matplotlib.use("Agg")  # needs no screen
    from matplotlib import pyplot

    size = (2 + 4 * len(panels), 4)
    figure, row = pyplot.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
    for axes, panel in zip(row[0], panels, strict=True):
        for name, points in panel.series.items():
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
        axes.set(xlabel=panel.x, ylabel=panel.y, title=panel.title, xlim=(0, None), ylim=(0, None))
        axes.grid(alpha=0.3)
        if len(panel.series) > 1:
            axes.legend(loc=panel.legend)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
