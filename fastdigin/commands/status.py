"""fastdigin status: how far the run of a folder is."""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdigin.commands.history import recall
from fastdigin.commands.options import path
from fastdigin.errors import UserError

LATEST = 100
"""The rate is that of so many images at most, the latest ones."""

ERRORS = 5


def add_options(parser: argparse.ArgumentParser, command: str) -> None:
    """The folder."""
    parser.add_argument("out", type=path, metavar="DIR", help="the --out of a run")


def run(options: argparse.Namespace) -> int:
    """Prints what is done, failed and left of each task; 1 if a job has failed."""
    from fastdigin.report.console import print_text

    found = task_states(options.out)
    for state in found:
        print_text(json.dumps(state) if options.json else "\n".join(_lines(state)))
    return 1 if any(state["failed"] for state in found) else 0


def task_states(out: Path) -> list[dict[str, Any]]:
    """Of each task in the folder, as JSON values; what nobody knows is None."""
    from fastdigin.results.store import read_lines, read_runs

    runs, command = read_runs(out), recall(out)
    if not runs:
        raise UserError(f"'{out}' holds no results: name the --out of a run")
    lines = read_lines(out)
    jobs = command.jobs if command else {}
    return [
        _state(out, task, [x for x in lines if x["task"] == task], jobs.get(task)) for task in runs
    ]


def _state(
    out: Path, task: str, lines: Sequence[Mapping[str, Any]], total: int | None
) -> dict[str, Any]:
    failed = [line for line in lines if line["status"] == "failed"]
    left = None if total is None else max(total - len(lines), 0)
    times = _finished(out, lines)[-LATEST:]
    span = times[-1] - times[0] if times else 0
    rate = (len(times) - 1) / span if span > 0 else None
    return {
        "task": task,
        "done": len(lines) - len(failed),
        "failed": len(failed),
        "left": left,
        "images_per_hour": rate and 3600 * rate,
        "hours_left": left / rate / 3600 if left is not None and rate else None,
        "seconds_since_last": max(0.0, time.time() - times[-1]) if times else None,
        "errors": [{"id": line["id"], "error": line.get("error")} for line in failed[-ERRORS:]],
    }


def _finished(out: Path, lines: Sequence[Mapping[str, Any]]) -> list[float]:
    """When jobs ended, as the times of their pictures, sorted."""
    from fastdigin.results.store import picture_path

    paths = (picture_path(out, line.get("image")) for line in lines)
    return sorted(path.stat().st_mtime for path in paths if path)


def _lines(state: Mapping[str, Any]) -> list[str]:
    from fastdigin.report.console import clean

    left = "an unknown number" if state["left"] is None else state["left"]
    lines = [f"{state['task']}: {state['done']} done, {state['failed']} failed, {left} left"]
    if state["images_per_hour"]:
        about = state["hours_left"]
        lines.append(
            f"  {state['images_per_hour']:.1f} images an hour"
            + (f", about {about:.1f} hours left" if about else "")
            + f"; the last one {state['seconds_since_last'] / 60:.0f} minutes ago"
        )
    errors = (f"{clean(one['id'])}: {clean(one['error'], 200)}" for one in state["errors"])
    return [*lines, *(f"  failed: {error}" for error in errors)]
