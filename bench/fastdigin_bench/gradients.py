"""Do two ways to compute a job's first gradients agree? Asked before speeds are compared.

All gradients are of iteration 0, through the whole chain of steps, decoder and losses.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from fastdigin.engine.engine import Engine
from fastdigin.engine.job import VARIABLES, Job
from fastdigin.errors import UserError
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin_bench.text_jobs import run_all

TOLERANCE = 1e-4  # of the first gradients in fp32 (design.md, section 3)

Gradients = Mapping[str, Tensor]
"""By variable: "latents" (C, h, w), "conditioning" and, with guidance, "null_text" (T, L, D)."""


def relative_error(actual: Gradients, expected: Gradients) -> float:
    """The largest |actual - expected| / |expected| of a variable, in the 2-norm."""
    return max(
        float((actual[name] - gradient).norm() / gradient.norm())
        for name, gradient in expected.items()
    )


def gradient_error(actual: Gradients, expected: Gradients) -> float:
    """Their relative error. Raises UserError where it is above TOLERANCE."""
    error = relative_error(actual, expected)
    if not error <= TOLERANCE:
        raise UserError(
            f"the first gradients differ by {error:.1e}, more than {TOLERANCE}: "
            "speeds of different computations are not compared"
        )
    return error


def engine_first_gradients(engine: Engine, job: Job) -> Gradients:
    """The engine's gradients, read where it hands them over; RuntimeError if the job fails.

    torch.optim is called with a job's variables in the order of VARIABLES.
    """
    steps: list[list[Tensor]] = []

    def read(optimiser: Optimizer, args, kwargs) -> None:
        parameters = (p for group in optimiser.param_groups for p in group["params"])
        steps.append([p.grad.clone() for p in parameters])

    hook = register_optimizer_step_pre_hook(read)
    try:
        run_all(engine, [replace(job, settings=replace(job.settings, iterations=1))])
    finally:
        hook.remove()
    (gradients,) = steps
    return dict(zip(VARIABLES, gradients, strict=False))  # without guidance there is no null text


def precision_cosines(model: LatentDiffusion, job: Job, dtype: torch.dtype) -> dict[str, float]:
    """Cosine between the gradients with networks of ``dtype`` and as they are, by variable."""
    expected, actual = (
        engine_first_gradients(Engine(each, slots=1, compile="off"), job)
        for each in (model, in_precision(model, dtype))
    )
    return {name: cosine(actual[name], gradient) for name, gradient in expected.items()}


def in_precision(model: LatentDiffusion, dtype: torch.dtype) -> LatentDiffusion:
    """A copy whose networks have ``dtype``. For models with one text encoder."""
    networks = [copy.deepcopy(n).to(dtype) for n in (model.unet, model.vae, model.text_encoder)]
    return LatentDiffusion(*networks, model.tokenizer, model.scheduler)


def cosine(a: Tensor, b: Tensor) -> float:
    """Of two tensors taken as vectors, however short (torch's own takes 1e-8 for a length of 0)."""
    a, b = (x.double().flatten() / x.double().norm() for x in (a, b))
    return float(a @ b)
