"""How much of what the U-Net computes is of use, in a whole run of counterfactuals?

A row of a U-Net batch is idle where it repeats another row of the same call (a batch that is not
full is padded with copies), where it repeats its own input of the call before (an inversion that is
through waits for its neighbours), or where it belongs to a slot whose job has ended.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest.mock import patch

import torch
from torch import Tensor

from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Job
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import EMBEDDED, LatentDiffusion
from fastdigin.photos import collect
from fastdigin.presets import EXACT
from fastdigin.tasks.counterfactual import EMBEDDED as EMBEDDED_SETTINGS
from fastdigin.tasks.counterfactual import Counterfactuals
from fastdigin.tasks.photo_task import PhotoRequest
from fastdigin.tasks.sources import Source
from fastdigin_bench.text_jobs import none_failed

SLOTS, STEPS = 8, 5
LENGTHS = (1, 20)
"""Fewest and most updates of a job. The steps are few to save time: every job has the same."""


@dataclass
class Occupancy:
    """rows: of all U-Net calls. repeated: idle by repetition; ended: of slots without a job."""

    jobs: int
    rows: int = 0
    repeated: int = 0
    ended: int = 0

    @property
    def share(self) -> float:
        """Of the rows, those that were of use."""
        return 1 - (self.repeated + self.ended) / self.rows

    def __str__(self) -> str:
        return (
            f"{self.jobs} counterfactuals of random length, inversion and search included: "
            f"{self.share:.1%} of {self.rows} U-Net rows were of use"
        )


class RandomLengths(Counterfactuals):
    """Counterfactuals of which each has a number of updates of its own, always the same."""

    def candidates(self, request: PhotoRequest, source: Source) -> list[Job]:
        updates = random.Random(request.id).randint(*LENGTHS)
        return [
            replace(job, settings=replace(job.settings, iterations=updates))
            for job in super().candidates(request, source)
        ]


def idle_iterations(engine: Engine) -> int:
    """How often a slot took part in an iteration without a job."""
    return engine.slot_iterations - engine.job_iterations


@contextmanager
def counted_rows(model: LatentDiffusion, found: Occupancy) -> Iterator[None]:
    """Counts the rows of a model's U-Net calls while the ``with`` lasts."""
    predict, before = model.predict, []

    def counted(z_bchw: Tensor, t_b: Tensor, context_bld: Tensor, *others) -> Tensor:
        found.rows += len(z_bchw)
        rows = [_bytes(*row) for row in zip(z_bchw, t_b, context_bld, strict=True)]
        # Candidates of one photo start from the same rows and differ by what is injected.
        if not others or others[0] is None or others[0].injected is None:
            last = before if len(before) == len(rows) else [None] * len(rows)
            found.repeated += sum(row in rows[:i] or row == last[i] for i, row in enumerate(rows))
        before[:] = rows
        return predict(z_bchw, t_b, context_bld, *others)

    with patch.object(model, "predict", counted):
        yield


def measure_occupancy(jobs: int) -> Occupancy:
    """Runs ``jobs`` counterfactuals of the packaged pairs; the photos are taken in turns."""
    model = LatentDiffusion.load(EMBEDDED, device="cpu")
    pairs = collect(["embedded:pairs"])
    items = [replace(pairs[n % len(pairs)], id=f"{n}") for n in range(jobs)]
    few = replace(EMBEDDED_SETTINGS.optimisation, steps=STEPS, last_steps=1)
    engine = Engine(model, slots=SLOTS, kept_steps=STEPS, compile="off")
    task = RandomLengths(
        engine=engine, photos=items, classifier=Classifier.load("embedded:robust"),
        settings=EXACT.of(replace(EMBEDDED_SETTINGS, optimisation=few, null_text_steps=3)),
    )  # fmt: skip
    found = Occupancy(jobs)
    with counted_rows(model, found):
        none_failed(task.run())
    # No step is computed twice, so an iteration's calls are its steps, of two rows a slot.
    found.ended = 2 * STEPS * idle_iterations(engine)
    return found


def _bytes(z: Tensor, t: Tensor, text: Tensor) -> bytes:
    return torch.cat([z.flatten(), t.view(1).to(z), text.flatten()]).detach().numpy().tobytes()
