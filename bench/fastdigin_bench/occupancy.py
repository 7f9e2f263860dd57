"""How much of what the U-Net computes is of use, in a whole run of counterfactuals?

A row of a U-Net batch is idle where it repeats another row of the same call (a batch that is not
full is padded with copies), where it repeats its own input of the call before (an inversion that is
through waits for its neighbours), or where it belongs to a slot whose job has ended.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Job
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import EMBEDDED, LatentDiffusion
from fastdigin.photos import collect
from fastdigin.tasks.counterfactual import EMBEDDED as EMBEDDED_SETTINGS
from fastdigin.tasks.counterfactual import Counterfactuals
from fastdigin.tasks.photo_task import PhotoRequest
from fastdigin.tasks.sources import Source
from fastdigin_bench.text_jobs import none_failed

SLOTS, STEPS = 8, 5
LENGTHS = (1, 20)
"""Fewest and most updates of a job. The steps are few to save time: every job has the same."""


@dataclass(frozen=True)
class OccupancyRun:
    """rows: of all U-Net calls. repeated: idle by repetition; ended: of slots without a job."""

    jobs: int
    rows: int
    repeated: int
    ended: int

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
    """Counterfactuals of which each has a number of updates of its own."""

    def candidates(self, request: PhotoRequest, source: Source) -> list[Job]:
        updates = random_length(request.id)
        return [
            replace(job, settings=replace(job.settings, iterations=updates))
            for job in super().candidates(request, source)
        ]


def random_length(id: str) -> int:
    """A number of updates, always the same for an id."""
    return random.Random(id).randint(*LENGTHS)


def idle_places(engine: Engine) -> int:
    """How often a slot took part in an iteration without a job."""
    return engine._places - engine._advanced


class RowCounter:
    """Counts the rows of a model's U-Net calls while the ``with`` lasts."""

    def __init__(self, model: LatentDiffusion):
        self.rows = self.repeated = 0
        self._model, self._predict = model, model.predict
        self._before: list[bytes] = []

    def __enter__(self) -> RowCounter:
        self._model.predict = self._counted
        return self

    def __exit__(self, *error) -> None:
        del self._model.predict  # the instance's; the class has its own

    def _counted(self, z_bchw: Tensor, t_b: Tensor, context_bld: Tensor, *others) -> Tensor:
        self.rows += len(z_bchw)
        rows = [_bytes(*row) for row in zip(z_bchw, t_b, context_bld, strict=True)]
        # Candidates of one photo start from the same rows and differ by what is injected.
        if not others or others[0] is None or others[0].injected is None:
            before = self._before if len(self._before) == len(rows) else [None] * len(rows)
            self.repeated += sum(row in rows[:i] or row == before[i] for i, row in enumerate(rows))
        self._before = rows
        return self._predict(z_bchw, t_b, context_bld, *others)


def measure_occupancy(jobs: int) -> OccupancyRun:
    """Runs ``jobs`` counterfactuals of the packaged pairs; the photos are taken in turns."""
    model = LatentDiffusion.load(EMBEDDED, device="cpu")
    pairs = collect(["embedded:pairs"])
    items = [replace(pairs[n % len(pairs)], id=f"{n}") for n in range(jobs)]
    settings = replace(
        EMBEDDED_SETTINGS,
        optimisation=replace(EMBEDDED_SETTINGS.optimisation, steps=STEPS, last_steps=1),
        null_text_steps=3,
    )
    engine = Engine(model, slots=SLOTS, kept_steps=STEPS, compile="off")
    task = RandomLengths(
        engine=engine, photos=items, classifier=Classifier.load("embedded:robust"),
        settings=settings,
    )  # fmt: skip
    with RowCounter(model) as counter:
        found = none_failed(task.run())
    # No step is computed twice, so an iteration's calls are its steps, of two rows a place.
    ended = 2 * STEPS * idle_places(engine)
    return OccupancyRun(len(found), counter.rows, counter.repeated, ended)


def _bytes(z: Tensor, t: Tensor, text: Tensor) -> bytes:
    return torch.cat([z.flatten(), t.view(1).to(z), text.flatten()]).detach().numpy().tobytes()
