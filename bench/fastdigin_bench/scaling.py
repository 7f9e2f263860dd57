"""How does the engine's speed change with jobs, steps and resolution, and are its slots busy?

    fastdigin bench scaling

Text-to-image jobs with two updates each, on the embedded model; one of the three is varied while
the others stay. Each point is timed ``--repeats`` times, the points in turns; medians are shown.
Then a run of many whole counterfactuals of random length: were the slots busy (occupancy.py)?
"""

from __future__ import annotations

import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastdigin.engine.engine import Engine
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import EMBEDDED, LatentDiffusion
from fastdigin.report.console import table
from fastdigin_bench.occupancy import OccupancyRun, measure_occupancy
from fastdigin_bench.output import conditions, print_last_line, results_folder, write_json
from fastdigin_bench.plots import panels
from fastdigin_bench.text_jobs import text_jobs

SLOTS = 8
UPDATES = 2


@dataclass(frozen=True)
class Point:
    """What is timed: ``jobs`` images of ``resolution`` pixels a side, sampled in ``steps``."""

    jobs: int = 4
    steps: int = 10
    resolution: int = 64


VARIED = {
    "jobs": (1, 2, 4, 8, 16),
    "steps": (5, 10, 20, 50),
    "resolution": (32, 64, 96, 128),
}


def run(options: Namespace) -> int:
    """Prints the tables, draws the plot, prints the last line."""
    folder = results_folder(options.results)
    points = {name: [Point(**{name: value}) for value in VARIED[name]] for name in VARIED}
    distinct = list(dict.fromkeys(point for each in points.values() for point in each))
    seconds = time_points(distinct, options.repeats)
    rows = {name: [_row(point, seconds[point]) for point in each] for name, each in points.items()}
    for name, each in rows.items():
        print(_table(name, each), "\n", flush=True)
    occupancy = measure_occupancy(options.jobs) if options.occupancy else None
    if occupancy:
        print(_occupancy_line(occupancy), flush=True)
    results = {
        "conditions": conditions(),
        "updates": UPDATES,
        "slots": SLOTS,
        **rows,
        "occupancy": occupancy and asdict(occupancy) | {"share": round(occupancy.share, 4)},
    }
    write_json(folder / "scaling.json", results)
    _plot(rows, folder / "scaling.png")
    print_last_line(results)
    return 0


def time_points(points: Sequence[Point], repeats: int) -> dict[Point, list[float]]:
    """Seconds of each repeat, after a small job of each resolution that nobody times."""
    classifier = Classifier.load("embedded:robust")
    engines = {}
    for resolution in sorted({point.resolution for point in points}):
        model = LatentDiffusion.load(EMBEDDED, device="cpu", size=resolution)
        engines[resolution] = Engine(model, slots=SLOTS, compile="off")
        _seconds(engines[resolution], classifier, Point(jobs=1, steps=2, resolution=resolution))
    found: dict[Point, list[float]] = {point: [] for point in points}
    for repeat in range(repeats):
        for point in points:
            found[point].append(_seconds(engines[point.resolution], classifier, point))
        print(f"scaling: {repeat + 1} of {repeats} repeats done", file=sys.stderr, flush=True)
    return found


def _seconds(engine: Engine, classifier: Classifier, point: Point) -> float:
    jobs = text_jobs(engine.model, classifier, point.steps, point.jobs, UPDATES)
    start = time.perf_counter()
    failed = [r.error for r in engine.run(jobs) if r.error]
    taken = time.perf_counter() - start
    if failed:
        raise RuntimeError(f"a job of the bench failed: {failed[0]}")
    return taken


def _row(point: Point, seconds: Sequence[float]) -> dict[str, Any]:
    median = statistics.median(seconds)
    evaluations = point.jobs * (UPDATES + 1)
    return asdict(point) | {
        "seconds": [round(each, 3) for each in seconds],
        "images_per_min": round(60 * point.jobs / median, 2),
        "ms_per_step": round(1e3 * median / (evaluations * point.steps), 2),
    }


def _table(name: str, rows: Sequence[dict[str, Any]]) -> str:
    cells = [
        [
            str(row[name]),
            f"{statistics.median(row['seconds']):.2f}",
            f"{min(row['seconds']):.2f} to {max(row['seconds']):.2f}",
            f"{row['images_per_min']:.1f}",
            f"{row['ms_per_step']:.1f}",
        ]
        for row in rows
    ]
    return table(
        [name, "seconds", "range", "images/min", "ms an image, evaluation and step"], cells
    )


def _occupancy_line(found: OccupancyRun) -> str:
    return (
        f"{found.jobs} counterfactuals of random length, inversion and search included: "
        f"{found.share:.1%} of {found.rows} U-Net rows were of use"
    )


def _plot(rows: dict[str, list[dict[str, Any]]], path: Path) -> None:
    labels = {
        "jobs": ("jobs at once", "images a minute", "images_per_min"),
        "steps": ("DDIM steps", "ms an evaluation and step", "ms_per_step"),
        "resolution": ("pixels a side", "images a minute", "images_per_min"),
    }
    panels(
        path,
        {
            name: (*labels[name][:2], [(row[name], row[labels[name][2]]) for row in each])
            for name, each in rows.items()
        },
    )
