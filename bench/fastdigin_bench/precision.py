"""What half precision does to a job's first gradients: the whole chain of steps, not one alone."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Job
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin_bench.agreement import engine_first_gradients


def gradient_cosines(model: LatentDiffusion, job: Job, dtype: torch.dtype) -> dict[str, float]:
    """Cosine between iteration 0's gradients with networks of ``dtype`` and as they are.

    Of each variable; through sampler, decoder and losses.
    """
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
    """Of two tensors taken as vectors."""
    a, b = (x.double().flatten() / x.double().norm() for x in (a, b))
    return float(a @ b)
