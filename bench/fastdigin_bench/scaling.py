"""How does the engine's speed change with jobs, steps and resolution, and are its slots busy?

    fastdigin bench scaling

Text-to-image jobs with two updates each, on the embedded model; one of the three is varied while
the others stay. Each point is timed ``--repeats`` times, the points in turns; medians are shown.
Then a run of many whole counterfactuals of random length: were the slots busy (occupancy.py)?
"""

from __future__ import annotations

import statistics
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from fastdigin.engine.engine import Engine
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import EMBEDDED, LatentDiffusion
from fastdigin_bench.occupancy import measure_occupancy
from fastdigin_bench.output import conditions, finish, rows_table
from fastdigin_bench.plots import Panel, plot
from fastdigin_bench.text_jobs import run_all, text_jobs
from fastdigin_bench.timing import time_in_turns

SLOTS = 8
UPDATES = 2


@dataclass(frozen=True)
class Point:
    """What is timed: ``jobs`` images of ``resolution`` pixels a side, sampled in ``steps``."""

    jobs: int = 4
    steps: int = 10
    resolution: int = 64


VARIED = {
    "jobs": [Point(jobs=n) for n in (1, 2, 4, 8, 16)],
    "steps": [Point(steps=n) for n in (5, 10, 20, 50)],
    "resolution": [Point(resolution=n) for n in (32, 64, 96, 128)],
}
# name -> (label of the x axis, of the y axis, key of a row)
PLOTTED = {
    "jobs": ("jobs at once", "images a minute", "images_per_min"),
    "steps": ("DDIM steps", "ms an evaluation and step", "ms_per_step"),
    "resolution": ("pixels a side", "images a minute", "images_per_min"),
}


def run(options: Namespace) -> int:
    """Prints the tables, draws the plot, prints the last line."""
    distinct = list(dict.fromkeys(point for points in VARIED.values() for point in points))
    seconds = time_points(distinct, options.repeats)
    rows = {
        name: [figures(point, seconds[point]) for point in points]
        for name, points in VARIED.items()
    }
    for name, each in rows.items():
        print(_table(name, each), "\n", flush=True)
    results = {"conditions": conditions(), "updates": UPDATES, "slots": SLOTS, **rows}
    results["occupancy"] = None
    if options.occupancy:
        found = measure_occupancy(options.jobs)
        print(found, flush=True)
        results["occupancy"] = asdict(found) | {"share": round(found.share, 4)}
    panels = [
        Panel(name, x, y, {name: [(row[name], row[key]) for row in rows[name]]})
        for name, (x, y, key) in PLOTTED.items()
    ]
    plot(options.results / "scaling.png", panels)
    finish(options.results / "scaling.json", results)
    return 0


def time_points(points: Sequence[Point], repeats: int) -> dict[Point, list[float]]:
    """Seconds of each repeat."""
    classifier = Classifier.load("embedded:robust")
    engines = {}
    for resolution in {point.resolution for point in points}:
        model = LatentDiffusion.load(EMBEDDED, device="cpu", size=resolution)
        engines[resolution] = Engine(model, slots=SLOTS, compile="off")

    def run(point: Point) -> None:
        engine = engines[point.resolution]
        settings = {"steps": point.steps, "iterations": UPDATES}
        run_all(engine, text_jobs(engine.model, classifier, point.jobs, **settings))

    return time_in_turns({point: partial(run, point) for point in points}, repeats)


def figures(point: Point, seconds: Sequence[float]) -> dict[str, Any]:
    """A row of results. An update is followed by an evaluation of what it gave."""
    median = statistics.median(seconds)
    evaluations = point.jobs * (UPDATES + 1)
    return asdict(point) | {
        "seconds": [round(each, 3) for each in seconds],
        "images_per_min": round(60 * point.jobs / median, 2),
        "ms_per_step": round(1e3 * median / (evaluations * point.steps), 2),
    }


def _table(name: str, rows: Sequence[dict[str, Any]]) -> str:
    columns = {
        name: name,
        "seconds": lambda row: f"{statistics.median(row['seconds']):.2f}",
        "range": lambda row: f"{min(row['seconds']):.2f} to {max(row['seconds']):.2f}",
        "images/min": lambda row: f"{row['images_per_min']:.1f}",
        "ms an image, evaluation and step": lambda row: f"{row['ms_per_step']:.1f}",
    }
    return rows_table(rows, columns)
