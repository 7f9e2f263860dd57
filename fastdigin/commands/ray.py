"""One command on Ray: the driver reads options and counts, actors load models and work."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from fastdigin.commands.history import remember
from fastdigin.commands.run import check_same_inputs, conclude, environment_of
from fastdigin.commands.workers import share_of_memory
from fastdigin.errors import UserError, visible
from fastdigin.results import ResultStore, read_records
from fastdigin.tasks.task import Task

if TYPE_CHECKING:
    from fastdigin.scale.driver import Pool


@dataclass(frozen=True)
class _Plan:
    """What the driver must know of a task. ids: of the jobs that the folder does not hold."""

    task: str
    ids: list[str]
    finished: int
    slots: int
    memory: str


def run_on_ray(options: Namespace, load: Callable[[Namespace], Task]) -> int:
    """Runs a task's command on the cluster that ``options.ray`` names; returns the exit code.

    load: makes the task of the options, where it is called.
    """
    plan, pool = on_worker(options, _planned, load)
    from fastdigin.scale.driver import Run

    options.slots, options.memory = plan.slots, plan.memory
    failed = []

    def on_record(line: Mapping[str, Any]) -> None:
        if options.json:
            print(json.dumps(line), flush=True)
        if line["status"] == "failed":
            failed.append(line["id"])
            tqdm.write(visible(f"failed: {line['id']}: {line['error']}"), file=sys.stderr)

    run = Run(
        task=plan.task, ids=plan.ids, out=options.out, load=partial(_load, options, load),
        pool=pool, slots=plan.slots, on_record=on_record, finished=plan.finished,
    )  # fmt: skip
    run.run()
    for id, why in run.errors.items():
        print(visible(f"no result: {id}: {why}"), file=sys.stderr)
    conclude([plan.task], options.out, as_json=options.json)
    return 1 if failed or run.errors else 0


def on_worker(options: Namespace, function: Callable[..., Any], load: Any) -> tuple[Any, Pool]:
    """What ``function(options, load)`` returns where a worker will be, and the pool of workers.

    There the options are those of one worker: its share of the memory.
    """
    try:
        import ray
    except ImportError:
        raise UserError('--ray needs Ray: pip install "fastdigin[ray]"') from None
    from fastdigin.scale.driver import PATIENCE, Pool, connect, wait_for

    connect(options.ray or None)
    pool = Pool.of_cluster(options.workers)
    options.workers = pool.size
    there = ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus or None, max_retries=0)(_there)
    asked = there.remote(options, function, load, pool.threads, pool.sharing, os.getcwd())
    return wait_for(asked, PATIENCE), pool


def _there(options: Namespace, function, load, threads: int, sharing: int, folder: str) -> Any:
    import torch

    os.chdir(folder)
    torch.set_num_threads(threads)
    options.memory = share_of_memory(options.memory, sharing)
    return function(options, load)


def _planned(options: Namespace, load: Callable[[Namespace], Task]) -> _Plan:
    """Checks everything once, and makes the results folder."""
    task = load(options)
    ids = options.shard.of([request.id for request in task.requests])
    records = read_records(options.out)
    done = {(r.task, r.id): r for r in records if r.status == "done" and r.complete}
    ResultStore(options.out, task.name, task.run_settings, environment_of(task))
    check_same_inputs(task, done, options.out)
    remember(options.out, options.arguments, {task.name: len(task.requests)})
    left = [id for id in ids if (task.name, id) not in done]
    return _Plan(task.name, left, len(ids) - len(left), task.engine.slots, options.memory)


def _load(options: Namespace, load: Callable[[Namespace], Task]):
    """In each actor: the whole task, and those of its requests that rows name."""
    task = load(options)
    by_id = {request.id: request for request in task.requests}

    def chosen(rows: Sequence[Mapping[str, Any]]):
        return task, [by_id[row["id"]] for row in rows]

    return chosen
