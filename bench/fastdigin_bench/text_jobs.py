"""Jobs that need no photo, for benches of the engine alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import torch

from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Job, Result, Settings
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.objectives import ClassConfidence, Cutouts
from fastdigin.results import Record

Found = TypeVar("Found", Result, Record)
PROMPT = "a photo of a red sneaker on grass"


def text_jobs(
    model: LatentDiffusion, classifier: Classifier, steps: int, count: int, updates: int
) -> list[Job]:
    """``count`` jobs from noise, each with the loss of a counterfactual's target."""
    conditioning, null_text = model.encode_prompts([PROMPT, ""])
    loss = ClassConfidence(classifier, 0, cutouts=Cutouts())
    settings = Settings(steps=steps, iterations=updates)
    noises = [
        torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(seed))
        for seed in range(count)
    ]
    return [
        Job(f"{seed}", noise, conditioning, null_text, [loss], settings, seed)
        for seed, noise in enumerate(noises)
    ]


def run_all(engine: Engine, jobs: Iterable[Job]) -> list[Result]:
    """All results. RuntimeError if a job failed: its time and memory say nothing."""
    return none_failed(engine.run(jobs))


def none_failed(found: Iterable[Found]) -> list[Found]:
    """All of the results or records. RuntimeError if one of them is of a failed job."""
    found = list(found)
    failed = [each for each in found if each.status == "failed"]
    if failed:
        raise RuntimeError(f"job {failed[0].id!r} of the bench failed: {failed[0].error}")
    return found
