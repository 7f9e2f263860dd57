"""The parts of ``fastdigin bench truth`` that run a task: its jobs, then a row of each record.

Jobs run as those of the command line do, into a results folder; a part that is run again only does
what the folder lacks. The embedded defaults were chosen on other photos or seeds, but for three
of the 96 pairs; the neurons were measured twice (bench/README.md).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from fastdigin import demo, embedded
from fastdigin.commands.run import run_tasks
from fastdigin.engine.engine import Engine
from fastdigin.metrics.truth import seen
from fastdigin.models.classifier import Classifier
from fastdigin.results import Record, read_records
from fastdigin.tasks.photo_task import PhotoTask
from fastdigin.tasks.task import Task
from fastdigin_bench import truth_rows
from fastdigin_bench.truth_rows import Row

COUNTS = {
    "counterfactual-clean": 96, "counterfactual-robust": 96, "disagreement": 48, "neurons": 20,
    "neuron-counterfactual": 48,
}  # fmt: skip
SEED = 0


def make_task(name: str, engine: Engine, limit: int | None = None) -> Task:
    """The task of the part called ``name``, with at most ``limit`` jobs.

    Counterfactuals are of the packaged pairs, disagreements of the planted classes in turn, f
    robust and g spurious. Neurons are the spurious classifier's, the planted ones first.
    """
    count = COUNTS[name] if limit is None else min(COUNTS[name], limit)
    kind, _, classifier = name.partition("-")
    if kind == "counterfactual":
        return demo.demo_counterfactuals(engine, count, SEED, classifier=classifier)
    makers = {
        "disagreement": demo.demo_disagreements,
        "neurons": demo.demo_neurons,
        "neuron-counterfactual": demo.demo_neuron_counterfactuals,
    }
    return makers[name](engine, count, SEED)


def measure(task: Task, out: Path) -> dict[str, Row]:
    """Job id -> row of all jobs that did not fail, in their order; runs those ``out`` lacks."""
    return {record.id: row(task, record) for record in finished(task, out)}


def row(task: Task, record: Record) -> Row:
    """What ``truth_rows`` reads off a record of the task."""
    if isinstance(task, PhotoTask):
        rows = {
            "counterfactual": truth_rows.counterfactual_row,
            "neuron-counterfactual": truth_rows.neuron_counterfactual_row,
        }
        return rows[task.name](task.model, record, photos_of(task)[record.id])
    if task.name == "neurons":
        return truth_rows.neuron_row(record)
    before, after = seen({"background": backgrounds()}, [record.initial_image, record.image])
    return truth_rows.disagreement_row(record, before["background"], after["background"])


@cache
def backgrounds() -> Classifier:
    """What tells backgrounds apart."""
    return Classifier.load("embedded:background")


def photos_of(task: PhotoTask) -> Mapping[str, embedded.Photo]:
    """Job id -> the packaged photo."""
    by_id = {photo.id: photo for photo in embedded.photos()}
    return {request.id: by_id[request.item.id] for request in task.requests}


def finished(task: Task, out: Path) -> list[Record]:
    """Runs what ``out`` lacks; the records of the task's jobs that are done, in their order.

    The folder may hold more jobs than the task: a longer run was there before.
    """
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the figures
        run_tasks([task], out, as_json=False)
    records = {record.id: record for record in read_records(out)}
    return [
        records[request.id] for request in task.requests if records[request.id].status == "done"
    ]
