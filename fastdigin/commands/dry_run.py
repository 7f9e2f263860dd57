"""--dry-run: what a task would do, what it would take, and what is missing."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastdigin.commands.run import check_same_inputs
from fastdigin.commands.workers import share_of_memory, sharing
from fastdigin.errors import UserError, visible
from fastdigin.results import read_records, read_runs
from fastdigin.results.store import check_same_settings, jsonable
from fastdigin.tasks.task import Task

MEASURED = 3
"""Iterations of the first batch that are timed; the first of them includes the preparation."""


def run_dry(options: argparse.Namespace, load: Callable[[argparse.Namespace], Task]) -> int:
    """Prints the plan of a task's command and writes nothing; 1 if something is missing.

    load: makes the task, once all networks that the options name are here.
    """
    if options.ray is not None:
        from fastdigin.commands.ray import on_worker

        plan, _ = on_worker(options, _planned, load)
    else:
        workers, threads = options.workers or 1, torch.get_num_threads()
        torch.set_num_threads(max(1, threads // workers))  # as one of them has
        options.memory = share_of_memory(options.memory, sharing(workers))
        try:
            plan = _planned(options, load)
        finally:
            torch.set_num_threads(threads)
    for line in plan.get("failing", ()):
        print(visible(f"would fail: {line}"), file=sys.stderr)
    if options.json:
        print(json.dumps(plan))
    else:
        from fastdigin.report.console import print_text

        print_text("\n".join(_lines(plan)))
    return 1 if plan["missing"] else 0


def _planned(options: argparse.Namespace, load: Callable[[argparse.Namespace], Task]) -> dict:
    """The plan, made where a worker will be."""
    from fastdigin.doctor.needs import check_needs

    wanted = {name.replace("_", "-"): value for name, value in vars(options).items()}
    needs = [need for need in check_needs(wanted) if need.status != "here"]
    plan = {
        "task": options.command,
        "missing": [need.problem for need in needs],
        "commands": list(dict.fromkeys(need.command for need in needs if need.command)),
    }
    return plan if needs else plan | _plan(load(options), options)


def _plan(task: Task, options: argparse.Namespace) -> dict[str, Any]:
    ids = set(options.shard.of([request.id for request in task.requests]))
    before = read_runs(options.out).get(task.name)
    if before is not None:
        check_same_settings(options.out, task.name, before, jsonable(task.run_settings))
    records = read_records(options.out)
    done = {(r.task, r.id): r for r in records if r.status == "done" and r.complete}
    check_same_inputs(task, done, options.out)
    left = [x for x in task.requests if x.id in ids and (task.name, x.id) not in done]
    items = (getattr(request, "item", None) for request in left)
    paths = (item.image for item in items if item is not None)
    absent = [path for path in paths if isinstance(path, Path) and not os.path.exists(path)]
    plan = {
        "task": task.name,
        "missing": [f"image '{path}' does not exist" for path in absent],
        "jobs": len(ids),
        "done": len(ids) - len(left),
        "left": len(left),
        "slots": task.engine.slots,
        "iterations": task.settings.optimisation.iterations,
    }
    return plan | _measured(task, left, options.workers or 1)


def _measured(task: Task, left: list, workers: int) -> dict[str, Any]:
    """Bytes and hours, from the first iterations of the first batch; None where there is none.

    "failing": the jobs of it that would fail, and why.
    """
    engine, checked, failing = task.engine, [], []
    for request in left:
        try:
            checked.append(task.check(request))
        except UserError as error:
            failing.append(f"{request.id}: {error}")
        if len(checked) == engine.slots:
            break
    if not checked:
        return {"memory": None, "hours": None, "failing": failing}
    print(f"measuring a batch of {len(checked)} ...", file=sys.stderr)
    engine.submit(task.jobs(checked, len(checked)))
    seconds = []
    while engine.busy and len(seconds) < MEASURED:
        start = time.perf_counter()
        for result in engine.step():
            if result.status == "failed":
                failing.append(f"{result.id}: {result.error}")
        seconds.append(time.perf_counter() - start)
    first, *others = seconds
    iteration = sum(others) / len(others) if others else 0.0
    batch = first + iteration * task.settings.optimisation.iterations
    plan = engine.plan
    return {
        "memory": plan and plan.predicted,
        "budget": plan and plan.budget,
        "seconds_per_image": batch / len(checked),
        "hours": batch / len(checked) * len(left) / workers / 3600,
        "failing": failing,
    }


def _lines(plan: dict[str, Any]) -> list[str]:
    from fastdigin.engine.memory import show_bytes

    lines = [f"missing: {problem}" for problem in plan["missing"]]
    lines += [f"  {command}" for command in plan["commands"]] if "commands" in plan else []
    if "jobs" not in plan:
        return lines
    lines.append(
        f"{plan['task']}: {plan['jobs']} jobs, {plan['done']} done, {plan['left']} left; "
        f"{plan['slots']} at a time, {plan['iterations']} iterations"
    )
    if plan["memory"]:
        lines.append(
            f"  memory: {show_bytes(plan['memory'])} of {show_bytes(plan['budget'])} beside the "
            "networks"
        )
    if plan["hours"] is not None:
        lines.append(
            f"  about {plan['hours']:.2f} hours, {plan['seconds_per_image']:.1f} s an image, "
            "measured on the first batch"
        )
    return lines
