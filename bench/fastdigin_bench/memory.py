"""How much memory does an iteration take, and does the planner know?

    fastdigin bench memory

The peak by steps, slots and kept steps, predicted and measured; the plans for a grid of budgets,
with what they really took; a count with fake tensors for Stable Diffusion (account.py); and the
figures that have a limit. Measured bytes are those of live tensors (hardware.py): the
model, which lives before, is not among them. state_bytes are the part of the prediction that grows
with the steps: the variables themselves, one text embedding a step, and their optimiser's moments.
Beside them stands the resident size of a fresh process, Python, libraries and model included.
"""

from __future__ import annotations

import re
import resource
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from fastdigin.commands.task import load_engine
from fastdigin.engine.architectures import ARCHITECTURES, RESOLUTIONS
from fastdigin.engine.costs import state_bytes
from fastdigin.engine.engine import Engine
from fastdigin.engine.memory import show_bytes
from fastdigin.engine.steps import whole_blocks
from fastdigin.errors import UserError
from fastdigin.hardware import LiveBytes
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import EMBEDDED, LatentDiffusion
from fastdigin_bench import account
from fastdigin_bench.output import conditions, finish, rows_table
from fastdigin_bench.plots import Panel, plot
from fastdigin_bench.processes import in_processes
from fastdigin_bench.text_jobs import run_all, text_jobs

GRID = [(steps, slots, 0) for slots in (1, 4) for steps in (5, 20, 50)]
GRID += [(20, 8, 0), (20, 1, 5), (20, 1, 20), (20, 4, 5), (20, 4, 20), (20, 8, 20)]
BUDGETS = ("32MiB", "128MiB", "256MiB", "512MiB", "1GiB", "4GiB")
BUDGET_SLOTS = (None, 1, 8)
BUDGET_STEPS = 10
UPDATES = 2  # the second is the first that Adam's moments live through

Row = Mapping[str, Any]


def run(options: Namespace) -> int:
    """Prints the tables, draws the plot, prints the last line."""
    model, classifier = load_engine(EMBEDDED).model, Classifier.load("embedded:robust")
    rows = [
        measured_row(model, classifier, *point)
        | {"resident_bytes": in_processes(resident_bytes, [point])[0]}
        for point in GRID
    ]
    print(rows_table(rows, PEAKS), "\n", flush=True)
    budgets = [
        budget_row(model, classifier, budget, slots, BUDGET_STEPS)
        for budget in BUDGETS
        for slots in BUDGET_SLOTS
    ]
    print(rows_table(budgets, PLANS), "\n", flush=True)
    counted = []
    if options.account:
        counted = [account.account(*each) for each in product(ARCHITECTURES, RESOLUTIONS)]
        print(rows_table(counted, COUNTS), "\n", flush=True)
    targets = find_targets(rows, budgets, counted)
    print(rows_table(targets, TARGETS), "\n", flush=True)
    title, y = "Peak memory, no step kept", "peak of live tensors, MiB"
    plot(options.results / "memory.png", [Panel(title, "DDIM steps", y, peak_lines(rows))])
    results = {"rows": rows, "budgets": budgets, "account": counted, "targets": targets}
    finish(options.results / "memory.json", {"conditions": conditions(), **results})
    return 0


def measured_peak(engine: Engine, classifier: Classifier, steps: int, count: int) -> int:
    """Most bytes of live tensors while ``count`` jobs are optimised."""
    model = engine.model
    # The first run measures costs.
    run_all(engine, text_jobs(model, classifier, 1, steps=1, iterations=UPDATES))
    with LiveBytes() as live:
        run_all(engine, text_jobs(model, classifier, count, steps=steps, iterations=UPDATES))
    return live.peak


def measured_row(
    model: LatentDiffusion, classifier: Classifier, steps: int, slots: int, kept: int
) -> dict[str, Any]:
    """The peak that was predicted, and the one that was measured."""
    # A budget is named so that the planner predicts at all; it never limits.
    engine = Engine(model, memory="1000GiB", slots=slots, kept_steps=kept, compile="off")
    peak = measured_peak(engine, classifier, steps, slots)
    return {
        "steps": steps,
        "slots": slots,
        "kept_steps": kept,
        "predicted_bytes": engine.plan.predicted,
        "measured_bytes": peak,
        "state_bytes": len(whole_blocks(range(slots), copies=2))
        * state_bytes(model, steps, model.text_length),
    }


def budget_row(
    model: LatentDiffusion, classifier: Classifier, budget: str, slots: int | None, steps: int
) -> dict[str, Any]:
    """What is planned for a budget, and what the plan takes. slots: None has them planned."""
    engine = Engine(model, memory=budget, slots=slots, compile="off")
    row = {"budget": budget, "slots_given": slots}
    try:
        peak = measured_peak(engine, classifier, steps, engine.slots)
    except UserError as error:
        return row | {"refused": str(error)}
    plan = engine.plan
    return row | {
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
    several = [at for at in _by_slots(rows).values() if len(at) > 1]
    growth = [_beyond_state(at[-1]) / _beyond_state(at[0]) for at in several]
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


def peak_lines(rows: Sequence[Row]) -> dict[str, list[tuple[float, float]]]:
    """(steps, MiB) for each number of slots, without kept steps: all, and beyond the state."""
    series = {}
    for slots, at in _by_slots(rows).items():
        name = f"{slots} slot{'s' * (slots > 1)}"
        series[name] = [(row["steps"], row["measured_bytes"] / 2**20) for row in at]
        if len(at) > 1:
            rest = [(row["steps"], _beyond_state(row) / 2**20) for row in at]
            series[f"{name}, without variables and moments"] = rest
    return series


def _by_slots(rows: Sequence[Row]) -> dict[int, list[Row]]:
    """slots -> rows without kept steps, fewest slots and steps first."""
    found: dict[int, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row["slots"], row["steps"])):
        if row["kept_steps"] == 0:
            found.setdefault(row["slots"], []).append(row)
    return found


def _beyond_state(row: Row) -> int:
    return row["measured_bytes"] - row["state_bytes"]


def resident_bytes(steps: int, slots: int, kept: int) -> int:
    """Does one such iteration; the largest resident size of this process so far."""
    model, classifier = load_engine(EMBEDDED).model, Classifier.load("embedded:robust")
    engine = Engine(model, slots=slots, kept_steps=kept, compile="off")
    run_all(engine, text_jobs(model, classifier, slots, steps=steps, iterations=UPDATES))
    try:
        # Not getrusage: on Linux its figure begins with what the parent process had.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 2**10
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _size(key: str) -> Callable[[Row], str]:
    return lambda row: show_bytes(row[key]) if key in row else ""


PEAKS = {
    "steps": "steps",
    "slots": "slots",
    "kept": "kept_steps",
    "predicted": _size("predicted_bytes"),
    "measured": _size("measured_bytes"),
    "ratio": lambda row: f"{row['predicted_bytes'] / row['measured_bytes']:.2f}",
    "resident, fresh process": _size("resident_bytes"),
}
PLANS = {
    "budget": "budget",
    "slots given": lambda row: row["slots_given"] or "planned",
    "slots": lambda row: row.get("slots", "refused"),
    "kept": lambda row: row.get("kept_steps", ""),
    "predicted": _size("predicted_bytes"),
    "measured": _size("measured_bytes"),
}
COUNTS = {
    "model": "model",
    "px": "resolution",
    "forward TFLOP": lambda row: f"{sum(row['flops_forward'].values()) / 1e12:.2f}",
    "saved GB a step": lambda row: f"{row['saved_bytes_per_step'] / 1e9:.2f}",
    "GB a slot": lambda row: f"{row['marginal_bytes_per_slot'] / 1e9:.2f}",
    "plain loop GB": lambda row: f"{row['plain_bytes_per_slot'] / 1e9:.1f}",
    "slots in 12 / 24 / 80 GB": lambda row: " / ".join(map(str, row["slots_in"].values())),
}
TARGETS = {
    "figure": "figure",
    "value": lambda row: f"{row['value']:.4g}",
    "at most": lambda row: f"{row['limit']:.4g}",
    "met": lambda row: "yes" if row["met"] else "NO",
}
