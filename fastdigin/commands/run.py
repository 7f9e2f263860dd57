"""Running the tasks of a command into one folder: records, progress, report."""

import json
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fastdigin.commands.history import remember
from fastdigin.commands.info import versions
from fastdigin.commands.shard import WHOLE, Shard
from fastdigin.errors import UserError, visible
from fastdigin.report import print_results, write_report
from fastdigin.report.console import print_text
from fastdigin.results import Record, ResultStore, read_records
from fastdigin.storage import weights_fingerprint
from fastdigin.tasks.running import run_together
from fastdigin.tasks.task import Task


def run_tasks(
    tasks: Sequence[Task],
    out: Path,
    *,
    as_json: bool,
    shard: Shard = WHOLE,
    only_failed: bool = False,
    arguments: Sequence[str] = (),
) -> int:
    """Runs tasks of one engine together into one folder, prints, reports; returns the exit code.

    Jobs that the folder already holds as done are not repeated, and those of other shards are not
    done. Every task is checked before the first one starts and before anything is written.

    only_failed: of the jobs that the folder holds as failed, no others. arguments: the command
    line, which is kept in the folder.
    """
    shares = [shard.of([request.id for request in task.requests]) for task in tasks]
    records = {(record.task, record.id): record for record in read_records(out)}
    finished = {key: record for key, record in records.items() if record.status == "done"}
    if only_failed:
        failures = records.keys() - finished.keys()
        pairs = zip(tasks, shares, strict=True)
        shares = [[id for id in share if (task.name, id) in failures] for task, share in pairs]
    if not any(shares):
        return 0  # fewer jobs than shards: others say what is wrong with them
    done = {key: record for key, record in finished.items() if record.complete}
    if len(done) < len(finished):
        lost = f"{len(finished) - len(done)} finished images lack pictures and are done again"
        print(lost, file=sys.stderr)
    skips, left = [], 0
    for task, share in zip(tasks, shares, strict=True):
        finished = {id for name, id in done if name == task.name}
        others = {request.id for request in task.requests} - set(share)
        skips.append(finished | others)
        left += sum(id not in finished for id in share)
    runs = run_together(tasks, skips, lambda jobs: advance(bar, jobs))
    together = min(tasks[0].engine.slots, left)  # too small a budget must not bind the folder
    stores = {
        task.name: ResultStore(out, task.name, task.run_settings, environment_of(task))
        for task in tasks
    }
    for task in tasks:
        check_same_inputs(task, done, out)
    if arguments:
        remember(out, arguments, {task.name: len(task.requests) for task in tasks})
    names = ", ".join(task.name for task in tasks)
    total, failed = sum(map(len, shares)), 0
    with tqdm(
        total=total, initial=total - left, unit="image", file=sys.stderr,
        desc=f"{names}, {together} at a time" if together > 1 else names,
        smoothing=0,  # what is done at a time differs: a step, a search, an iteration
        bar_format="{l_bar}{bar}| {n:.1f}/{total} [{elapsed}<{remaining}, {rate_fmt}]",
    ) as bar:  # fmt: skip
        for task, record in runs:
            line = record.save(stores[task.name])
            if as_json:
                print(json.dumps(line), flush=True)
            if record.status == "failed":
                failed += 1
                tqdm.write(visible(f"failed: {record.id}: {record.error}"), file=sys.stderr)
        bar.update(bar.total - bar.n)
    conclude([task.name for task in tasks], out, as_json=as_json)
    return 1 if failed else 0


def run_command(tasks: Sequence[Task], options: Namespace) -> int:
    """``run_tasks`` as the options of a command say."""
    return run_tasks(
        tasks, options.out, as_json=options.json, shard=options.shard,
        only_failed=options.only_failed, arguments=options.arguments,
    )  # fmt: skip


def conclude(tasks: Sequence[str], out: Path, *, as_json: bool) -> None:
    """Writes the report of a folder, and prints the results of the tasks where people read."""
    report = write_report(out)
    if as_json:
        return
    records = read_records(out)
    for task in tasks:
        print_results(task, records)
        print()
    print_text(f"report: {report}")


def environment_of(task: Task) -> dict[str, Any]:
    """The versions, the machine and the weights that make a run's results."""
    weights = {task.model.name: weights_fingerprint(task.model.networks)}
    weights |= {c.name: weights_fingerprint([c.network]) for c in task.classifiers}
    return versions() | {"weights": weights}


def advance(bar: tqdm, share: float) -> None:
    """Shares of all work add up to it but for rounding, which tqdm would warn of."""
    bar.update(min(share, bar.total - bar.n))


def check_same_inputs(task: Task, done: Mapping[tuple[str, str], Record], out: Path) -> None:
    """Raises UserError where a finished job has the id of an input but was another photo's."""
    for request in task.requests:
        record = done.get((task.name, request.id))
        before = getattr(record, "input", None)
        now = getattr(request, "fingerprint", None) if before else None
        if before and now and before != now:
            raise UserError(
                f"--out '{out}' holds {request.id!r} of another image, prompt, source or mask; "
                "name another --out, or give the image an id of its own in a table"
            )
