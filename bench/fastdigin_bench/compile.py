"""What compiling a step gives, and what it costs, beside the same step uncompiled.

    fastdigin bench compile

Every graph of a full batch is made by torch's inductor and timed in turns with the functions it
stands for; it must give the same results. With an empty cache folder (TORCHINDUCTOR_CACHE_DIR) the
seconds are those of a first compilation, a second run finds its code on disk.
"""

from __future__ import annotations

import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from fastdigin.commands.task_options import load_engine
from fastdigin.engine.compile_choice import CompileChoice
from fastdigin.engine.costs import step_inputs
from fastdigin.engine.sampler import StepFunctions
from fastdigin.errors import UserError
from fastdigin.models.diffusion import EMBEDDED
from fastdigin.report.console import table
from fastdigin_bench.output import conditions, print_last_line, results_folder, write_json

TOLERANCE = 1e-4
ROLES = ("forward", "joint", "kept")


def run(options: Namespace) -> int:
    """Prints the table and the last line. UserError where the two do not agree."""
    file = results_folder(options.results) / "compile.json"
    model = load_engine(EMBEDDED, slots=options.slots).model
    *variables, step = step_inputs(model, options.slots, True, model.text_length)
    torch.manual_seed(0)
    step = replace(step, guidance=torch.full_like(step.guidance, 3.0))
    inputs = (*(torch.randn_like(x) for x in variables), step)
    choice, rows = CompileChoice(model, "on", lambda: options.slots), []
    for role in ROLES:
        plain, compiled = (_call(role, choice.of(each), inputs) for each in (False, True))
        start = time.perf_counter()
        found = compiled()
        seconds = time.perf_counter() - start
        error = _error(found, plain())
        if error > TOLERANCE:
            raise UserError(f"the compiled {role} differs by {error:.1e}: its speed says nothing")
        times = [[_seconds(each) for each in (plain, compiled)] for _ in range(options.repeats)]
        before, after = (statistics.median(each) for each in zip(*times, strict=True))
        ratios = [a / b for a, b in times]
        rows.append(
            {
                "role": role,
                "compile_seconds": round(seconds - after, 1),
                "milliseconds": round(1e3 * before, 2),
                "compiled_milliseconds": round(1e3 * after, 2),
                "ratio": round(before / after, 3),
                "ratio_low": round(min(ratios), 3),
                "ratio_high": round(max(ratios), 3),
                "error": error,
            }
        )
    print(table(list(rows[0]), [[str(value) for value in row.values()] for row in rows]))
    results = {"conditions": conditions(), "slots": options.slots, "rows": rows}
    write_json(file, results)
    print_last_line(results)
    return 0


def _call(role: str, functions: StepFunctions, inputs: tuple) -> Callable[[], tuple[Tensor, ...]]:
    incoming = torch.ones_like(inputs[0]), torch.ones_like(inputs[0])
    if role == "forward":
        return lambda: functions.forward(*inputs)
    if role == "joint":
        return lambda: functions.joint(*inputs, *incoming)
    return lambda: functions.pull_back(functions.record(*inputs), *incoming)


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _error(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """The largest, relative to the largest value of its tensor."""
    return max(
        float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))
        for a, b in zip(actual, expected, strict=True)
    )
