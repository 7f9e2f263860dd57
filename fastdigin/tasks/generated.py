"""Jobs that start from a sample of a prompt rather than from a photo."""

from typing import Any

import torch

from fastdigin.engine.job import Job, Settings
from fastdigin.models.diffusion import LatentDiffusion

PROMPT_OF_A_WORD = "a photo of a {}"


def seed_of(seed: int, number: int, draw: int = 0) -> int:
    """The seed of the ``number``-th image of a run: its own, whatever runs beside or before it.

    draw: of several starts for that image, which one.
    """
    return seed * 100_003 + number + draw * 1_000_003


def generated_job(
    model: LatentDiffusion, *, prompt: str, settings: Settings, seed: int, **known: Any
) -> Job:
    """A Job whose latent is drawn on the CPU from ``seed`` (so devices agree).

    It is the latent that diffusers' pipelines start from, given a generator with that seed. known:
    the other fields of the Job.
    """
    generator = torch.Generator().manual_seed(seed)
    scale = model.ddim_table(settings.steps).initial_scale
    conditioning, null_text = model.encode_prompts([prompt, ""])
    return Job(
        latents=scale * torch.randn(model.latent_shape, generator=generator),
        conditioning=conditioning,
        null_text=null_text,
        pooled=model.encode_pooled([prompt, ""]),
        settings=settings,
        seed=seed,
        **known,
    )
