"""How much memory does an iteration take, and does the planner know?

    fastdigin bench memory

The peak by steps, slots and kept steps, predicted and measured; the plans for a grid of budgets,
with what they really took; a count with fake tensors for Stable Diffusion (account.py); and the
figures that have a limit. Measured bytes are those of live tensors (engine/live_bytes.py): the
model, which lives before, is not among them. state_bytes are the part of the prediction that grows
with the steps: the variables themselves, one text embedding a step, and their optimiser's moments.
Beside them stands the resident size of a fresh process, Python, libraries and model included.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdigin.commands.task_options import load_engine
from fastdigin.engine.costs import state_bytes
from fastdigin.engine.engine import Engine
from fastdigin.engine.live_bytes import LiveBytes
from fastdigin.engine.memory import show_bytes
from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import EMBEDDED
from fastdigin.report.console import table
from fastdigin_bench import account
from fastdigin_bench.output import conditions, print_last_line, results_folder, write_json
from fastdigin_bench.plots import lines
from fastdigin_bench.text_jobs import text_jobs

GRID = [(steps, slots, 0) for slots in (1, 4) for steps in (5, 20, 50)]
GRID += [(20, 8, 0), (20, 1, 5), (20, 1, 20), (20, 4, 5), (20, 4, 20), (20, 8, 20)]
BUDGETS = ("32MiB", "128MiB", "256MiB", "512MiB", "1GiB", "4GiB")
BUDGET_SLOTS = (None, 1, 8)
BUDGET_STEPS = 10
UPDATES = 2  # the second is the first that Adam's moments live through

Row = Mapping[str, Any]


def run(options: Namespace) -> int:
    """Prints the tables, draws the plot, prints the last line."""
    if options.one_process is not None:
        return _one_process(*map(int, options.one_process.split(",")))
    folder = results_folder(options.results)
    model, classifier = load_engine(EMBEDDED).model, Classifier.load("embedded:robust")
    rows = [_measured_row(model, classifier, *point) for point in GRID]
    print(_peaks_table(rows), "\n", flush=True)
    budgets = list(_budget_rows(model, classifier))
    print(_budgets_table(budgets), "\n", flush=True)
    counted = account.table() if options.account else []
    if counted:
        print(_account_table(counted), "\n", flush=True)
    targets = find_targets(rows, budgets, counted)
    print(_targets_table(targets), "\n", flush=True)
    results = {
        "conditions": conditions(),
        "rows": rows,
        "budgets": budgets,
        "account": counted,
        "targets": targets,
    }
    write_json(folder / "memory.json", results)
    _plot(rows, folder / "memory.png")
    print_last_line(results)
    return 0


def measured_peak(engine: Engine, classifier: Classifier, steps: int, count: int) -> int:
    """Most bytes of live tensors while ``count`` jobs are optimised."""
    list(engine.run(text_jobs(engine.model, classifier, 1, 1, UPDATES)))  # which measures costs
    with LiveBytes() as live:
        results = list(engine.run(text_jobs(engine.model, classifier, steps, count, UPDATES)))
    failed = [r.error for r in results if r.error]
    if failed:
        raise RuntimeError(f"a job of the bench failed: {failed[0]}")
    return live.peak


def _measured_row(model, classifier, steps: int, slots: int, kept: int) -> dict[str, Any]:
    # A budget is named so that the planner predicts at all; it never limits.
    engine = Engine(model, memory="1000GiB", slots=slots, kept_steps=kept, compile="off")
    peak = measured_peak(engine, classifier, steps, slots)
    return {
        "steps": steps,
        "slots": slots,
        "kept_steps": kept,
        "predicted_bytes": engine.plan.predicted,
        "measured_bytes": peak,
        "state_bytes": state_bytes(model, slots, steps, model.text_length),
        "resident_bytes": _resident_bytes(steps, slots, kept),
    }


def _budget_rows(model, classifier) -> Iterator[dict[str, Any]]:
    """What is planned for each budget, and what the plan takes."""
    for budget in BUDGETS:
        for slots in BUDGET_SLOTS:
            engine = Engine(model, memory=budget, slots=slots, compile="off")
            row = {"budget": budget, "slots_given": slots}
            try:
                peak = measured_peak(engine, classifier, BUDGET_STEPS, engine.slots)
            except UserError as error:
                yield row | {"refused": str(error)}
                continue
            plan = engine.plan
            yield row | {
                "slots": plan.slots,
                "kept_steps": plan.kept_steps,
                "budget_bytes": plan.budget,
                "predicted_bytes": plan.predicted,
                "measured_bytes": peak,
            }


def find_targets(
    rows: Sequence[Row], budgets: Sequence[Row], counted: Sequence[Row]
) -> list[dict[str, Any]]:
    """The figures that have a limit: {"figure", "value", "limit", "met"} each."""
    unkept = [row for row in rows if row["kept_steps"] == 0]
    growth = [
        _beyond_state(longest) / _beyond_state(shortest)
        for slots in {row["slots"] for row in unkept}
        if (at := sorted((r for r in unkept if r["slots"] == slots), key=lambda r: r["steps"]))
        and (shortest := at[0])["steps"] < (longest := at[-1])["steps"]
    ]
    run = [row for row in budgets if "refused" not in row]
    errors = [abs(row["measured_bytes"] / row["predicted_bytes"] - 1) for row in (*rows, *run)]
    found = [
        ("growth from the fewest to the most steps, without the slots' state", max(growth), 1.05),
        ("largest error of a prediction", max(errors), 0.10),
        ("most of a budget", max(r["measured_bytes"] / r["budget_bytes"] for r in run), 1.0),
    ]
    for row in counted:
        if (row["model"], row["resolution"]) == ("SD 1.4", 512):
            found += [
                ("SD 1.4 at 512 px: bytes of one more slot", row["marginal_bytes_per_slot"], 1.5e9),
                ("SD 1.4 at 512 px: bytes of a kept step", row["saved_bytes_per_step"], 1.0e9),
            ]
    return [
        {"figure": name, "value": round(value, 4), "limit": limit, "met": value <= limit}
        for name, value, limit in found
    ]


def _beyond_state(row: Row) -> int:
    return row["measured_bytes"] - row["state_bytes"]


def _resident_bytes(steps: int, slots: int, kept: int) -> int:
    """Largest resident size of a fresh process that does one such iteration."""
    command = [sys.executable, "-m", "fastdigin.cli", "bench", "memory"]
    command += ["--one-process", f"{steps},{slots},{kept}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])["resident_bytes"]


def _one_process(steps: int, slots: int, kept: int) -> int:
    model, classifier = load_engine(EMBEDDED).model, Classifier.load("embedded:robust")
    engine = Engine(model, slots=slots, kept_steps=kept, compile="off")
    list(engine.run(text_jobs(model, classifier, steps, slots, UPDATES)))
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print_last_line({"resident_bytes": kibibytes * 2**10})
    return 0


def _targets_table(targets: Sequence[Row]) -> str:
    cells = [
        [t["figure"], f"{t['value']:.4g}", f"{t['limit']:.4g}", "yes" if t["met"] else "NO"]
        for t in targets
    ]
    return table(["figure", "value", "at most", "met"], cells)


def _peaks_table(rows: list[dict[str, Any]]) -> str:
    cells = [
        [
            str(r["steps"]),
            str(r["slots"]),
            str(r["kept_steps"]),
            show_bytes(r["predicted_bytes"]),
            show_bytes(r["measured_bytes"]),
            f"{r['predicted_bytes'] / r['measured_bytes']:.2f}",
            show_bytes(r["resident_bytes"]),
        ]
        for r in rows
    ]
    titles = ["steps", "slots", "kept", "predicted", "measured", "ratio", "resident, fresh process"]
    return table(titles, cells)


def _budgets_table(rows: list[dict[str, Any]]) -> str:
    cells = []
    for r in rows:
        given = "planned" if r["slots_given"] is None else str(r["slots_given"])
        if "refused" in r:
            cells.append([r["budget"], given, "refused", "", "", ""])
        else:
            plan = [str(r["slots"]), str(r["kept_steps"])]
            sizes = [show_bytes(r["predicted_bytes"]), show_bytes(r["measured_bytes"])]
            cells.append([r["budget"], given, *plan, *sizes])
    return table(["budget", "slots given", "slots", "kept", "predicted", "measured"], cells)


def _account_table(rows: list[dict[str, Any]]) -> str:
    cells = [
        [
            r["model"],
            str(r["resolution"]),
            f"{sum(r['flops_forward'].values()) / 1e12:.2f}",
            f"{r['saved_bytes_per_step'] / 1e9:.2f}",
            f"{r['marginal_bytes_per_slot'] / 1e9:.2f}",
            f"{r['plain_bytes_per_slot'] / 1e9:.1f}",
            " / ".join(str(n) for n in r["slots_in"].values()),
        ]
        for r in rows
    ]
    titles = ["model", "px", "forward TFLOP", "saved GB a step", "GB a slot", "plain loop GB"]
    return table([*titles, "slots in 12 / 24 / 80 GB"], cells)


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Peak by the number of steps, for each number of slots, without kept steps."""
    unkept = [r for r in rows if r["kept_steps"] == 0]
    series = {}
    for slots in sorted({r["slots"] for r in unkept}):
        at = [r for r in unkept if r["slots"] == slots]
        name = f"{slots} slot{'s' * (slots > 1)}"
        series[name] = [(r["steps"], r["measured_bytes"] / 2**20) for r in at]
        if len(at) > 1:
            rest = [(r["steps"], _beyond_state(r) / 2**20) for r in at]
            series[f"{name}, without variables and moments"] = rest
    lines(path, series, "DDIM steps", "peak of live tensors, MiB", "Peak memory, no step kept")
