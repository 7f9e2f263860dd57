"""Jobs that need no photo, for benches of the engine alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Job, Loss, Result, Settings
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.objectives import ClassConfidence, Cutouts
from fastdigin.results import Record
from fastdigin.tasks.generated import generated_job

Found = TypeVar("Found", Result, Record)
PROMPT = "a photo of a red sneaker on grass"


def text_jobs(
    model: LatentDiffusion, judge: Classifier | Loss, count: int, **settings: object
) -> list[Job]:
    """``count`` jobs from noise. judge: a loss, or whose target is the loss.

    settings: fields of Settings.
    """
    if isinstance(judge, Classifier):
        judge = ClassConfidence(judge, 0, cutouts=Cutouts())
    return [
        generated_job(
            model, id=f"{seed}", prompt=PROMPT, losses=[judge], settings=Settings(**settings),
            seed=seed,
        )
        for seed in range(count)
    ]  # fmt: skip


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
