"""--dry-run: what a task would do, what it would take, and what is missing."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastdigin.commands.shard import Shard
from fastdigin.errors import UserError
from fastdigin.results import read_records
from fastdigin.tasks.task import Task

MEASURED = 3
"""Iterations of the first batch that are timed; the first of them includes the preparation."""


def run_dry(options: argparse.Namespace, load: Callable[[argparse.Namespace], Task]) -> int:
    """Prints the plan of a task's command and writes nothing; 1 if something is missing.

    load: makes the task, once all networks that the options name are here.
    """
    from fastdigin.doctor.needs import check_needs

    wanted = {name.replace("_", "-"): value for name, value in vars(options).items()}
    needs = [need for need in check_needs(wanted) if need.status != "here"]
    plan: dict[str, Any] = {
        "task": options.command,
        "missing": [need.problem for need in needs],
        "commands": list(dict.fromkeys(need.command for need in needs if need.command)),
    }
    if not needs:
        workers, threads = options.workers or 1, torch.get_num_threads()
        torch.set_num_threads(max(1, threads // workers))  # as one of them has
        try:
            plan |= _plan(load(options), options.out, options.shard, workers)
        finally:
            torch.set_num_threads(threads)
    if options.json:
        print(json.dumps(plan))
    else:
        from fastdigin.report.console import print_text

        print_text("\n".join(_lines(plan)))
    return 1 if plan["missing"] else 0


def _plan(task: Task, out: Path, shard: Shard, workers: int) -> dict[str, Any]:
    ids = set(shard.of([request.id for request in task.requests]))
    states = {r.id: r.status for r in read_records(out) if r.task == task.name}
    left = [request for request in task.requests
            if request.id in ids and states.get(request.id) != "done"]  # fmt: skip
    items = (getattr(request, "item", None) for request in left)
    paths = (item.image for item in items if item is not None)
    absent = [path for path in paths if isinstance(path, Path) and not path.exists()]
    plan = {
        "task": task.name,
        "missing": [f"image '{path}' does not exist" for path in absent],
        "jobs": len(ids),
        "done": len(ids) - len(left),
        "left": len(left),
        "slots": task.engine.slots,
        "iterations": task.settings.optimisation.iterations,
    }
    return plan | _measured(task, left, workers)


def _measured(task: Task, left: list, workers: int) -> dict[str, Any]:
    """Bytes and hours, from the first iterations of the first batch; None where there is none."""
    engine, checked = task.engine, []
    for request in left:
        try:
            checked.append(task.check(request))
        except UserError as error:
            print(f"would fail: {request.id}: {error}", file=sys.stderr)
        if len(checked) == engine.slots:
            break
    if not checked:
        return {"memory": None, "hours": None}
    print(f"measuring a batch of {len(checked)} ...", file=sys.stderr)
    engine.submit(task.jobs(checked, len(checked)))
    seconds = []
    while engine.busy and len(seconds) < MEASURED:
        start = time.perf_counter()
        for result in engine.step():
            if result.status == "failed":
                print(f"would fail: {result.id}: {result.error}", file=sys.stderr)
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
