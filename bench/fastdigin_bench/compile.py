"""What compiling a step gives, and what it costs, beside the same step uncompiled.

    fastdigin bench compile

Every graph of a full batch is made by torch's inductor and timed in turns with the functions it
stands for; it must give the same results. With an empty cache folder (TORCHINDUCTOR_CACHE_DIR) the
seconds are those of a first compilation, a second run finds its code on disk.
"""

from __future__ import annotations

import statistics
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastdigin.commands.task import load_engine
from fastdigin.engine.compile_choice import CompileChoice
from fastdigin.engine.costs import step_inputs
from fastdigin.engine.sampler import StepFunctions
from fastdigin.errors import UserError
from fastdigin.models.diffusion import EMBEDDED, LatentDiffusion
from fastdigin_bench.output import conditions, finish, rows_table
from fastdigin_bench.timing import seconds_of, time_in_turns

TOLERANCE = 1e-4
ROLES = ("forward", "joint", "kept")


def run(options: Namespace) -> int:
    """Prints the table and the last line. UserError where the two do not agree."""
    model = load_engine(EMBEDDED, slots=options.slots).model
    rows = measure(model, options.slots, options.repeats)
    print(rows_table(rows, {name: name for name in rows[0]}))
    results = {"conditions": conditions(), "slots": options.slots, "rows": rows}
    finish(options.results / "compile.json", results)
    return 0


def measure(model: LatentDiffusion, slots: int, repeats: int) -> list[dict[str, Any]]:
    """A row for each of ROLES: compiles it, checks it, times it."""
    *variables, step = step_inputs(model, slots, True, model.text_length)
    torch.manual_seed(0)
    step = replace(step, guidance=torch.full_like(step.guidance, 3.0))
    inputs = (*(torch.randn_like(x) for x in variables), step)
    choice, rows = CompileChoice(model, "on", lambda: slots), []
    for role in ROLES:
        plain, compiled = (_call(role, choice.of(each), inputs) for each in (False, True))
        first = seconds_of(compiled)
        error = agreement(role, compiled(), plain())
        times = time_in_turns({"plain": plain, "compiled": compiled}, repeats)
        before, after = map(statistics.median, times.values())
        ratios = [a / b for a, b in zip(*times.values(), strict=True)]
        rows.append(
            {
                "role": role,
                "compile_seconds": round(first - after, 1),
                "milliseconds": round(1e3 * before, 2),
                "compiled_milliseconds": round(1e3 * after, 2),
                "ratio": round(before / after, 3),
                "ratio_low": round(min(ratios), 3),
                "ratio_high": round(max(ratios), 3),
                "error": error,
            }
        )
    return rows


def agreement(role: str, found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """The largest error, relative to the largest value of its tensor. UserError above TOLERANCE."""
    error = max(
        float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))
        for a, b in zip(found, expected, strict=True)
    )
    if not error <= TOLERANCE:
        raise UserError(f"the compiled {role} differs by {error:.1e}: its speed says nothing")
    return error


def _call(role: str, functions: StepFunctions, inputs: tuple) -> Callable[[], tuple[Tensor, ...]]:
    incoming = torch.ones_like(inputs[0]), torch.ones_like(inputs[0])
    if role == "forward":
        return lambda: functions.forward(*inputs)
    if role == "joint":
        return lambda: functions.joint(*inputs, *incoming)
    return lambda: functions.vjp(functions.forward_with_graph(*inputs), *incoming)
