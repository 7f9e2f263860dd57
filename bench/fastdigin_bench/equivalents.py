"""How much arithmetic an iteration takes, in forwards of the U-Net; counted, not timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Job
from fastdigin.engine.sampler import StepFunctions, guided_step, unrolled_backward, unrolled_forward
from fastdigin.engine.steps import BatchSteps
from fastdigin_bench.counters import FlopCounter


def forward_equivalents(engine: Engine, jobs: Sequence[Job]) -> dict[str, dict[str, float]]:
    """An iteration's arithmetic over that of T forwards, with no step kept and with all.

    "networks" is of convolutions and linear layers: forward and input gradient are 2.0, a
    recomputed forward makes 3.0. "attention" stands apart, because its backward costs 2.5
    forwards, and where a source's attention is injected its forward is taken twice.
    """
    model, steps = engine.model, BatchSteps(engine.model, jobs, engine.model.state_dtype)
    z = torch.stack([job.latents for job in jobs])
    per_step = (len(steps), -1, -1)
    cond = torch.stack([job.conditioning.expand(per_step) for job in jobs])
    null = torch.stack([job.null_text.expand(per_step) for job in jobs])
    with FlopCounter() as once, torch.no_grad():
        guided_step(model, z, cond[:, -1], null[:, -1], steps[-1])
    forward = _by_part(once.flops)
    found: dict[str, dict[str, float]] = {}
    for name, kept_steps in (("recomputed", 0), ("kept", len(steps))):
        with FlopCounter() as counter:
            run = unrolled_forward(StepFunctions(model), z, cond, null, steps, 1, kept_steps)
            unrolled_backward(
                StepFunctions(model), run.inputs, cond, null, steps, [z], kept=run.kept
            )
        found[name] = {
            part: round(total / (forward[part] * len(steps)), 3)
            for part, total in _by_part(counter.flops).items()
            if forward[part]
        }
    return found


def _by_part(flops: Mapping[str, int]) -> dict[str, int]:
    return {
        "networks": flops["convolution"] + flops["linear"],
        "attention": flops["attention"],
    }
