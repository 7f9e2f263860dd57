"""A task whose engine only sleeps: for what is measured of scale-out, every other path is real."""

from __future__ import annotations

import errno
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from fastdigin.configuration import setting
from fastdigin.engine.job import Job, Result, Settings
from fastdigin.results import Record, register
from fastdigin.tasks.task import Request, Task, given

SLOTS = 8


@dataclass(frozen=True)
class SleepSettings:
    """optimisation: nothing of it is used but that every task has one."""

    optimisation: Settings = setting(Settings(iterations=1), "the engine's settings")


@register
@dataclass(frozen=True, kw_only=True)
class SleepRecord(Record):
    """What sleeping made."""

    task = "sleep"


@dataclass
class SleepEngine:
    """Stands for an engine: a job takes its seconds, and its picture follows from its id alone.

    faults: a folder with a file for each fault that is still to come.
    """

    seconds: float
    faults: Path
    slots: int = SLOTS
    model: Any = field(
        default_factory=lambda: SimpleNamespace(
            name="sleep", device=torch.device("cpu"), dtype=torch.float32,
            ddim_table=range, unusual=dict, usual_steps=1, usual_guidance_scale=1.0,
        )
    )  # fmt: skip

    def run(self, work, on_progress=None) -> Iterator[Result]:
        jobs = iter(work)
        while batch := list(islice(jobs, self.slots)):
            time.sleep(self.seconds * len(batch))
            if on_progress is not None:
                on_progress(len(batch))
            for job in batch:
                self._fail_once("memory", job.id, torch.OutOfMemoryError("out of memory"))
                self._fail_once("disk", job.id, OSError(errno.ENOSPC, "No space left on device"))
                yield Result(job, "done", None, picture(job.id), None, [{"total": 0.0}], 0, 0.0)

    def _fail_once(self, fault: str, id: str, error: Exception) -> None:
        marker = self.faults / f"{fault}-{id}"
        if marker.exists():
            marker.unlink()
            raise error


def picture(id: str) -> torch.Tensor:
    """The result of a job, whoever makes it and whenever."""
    seed = int.from_bytes(hashlib.sha256(id.encode()).digest()[:4], "big")
    return torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(seed))


@dataclass(kw_only=True)
class Sleep(Task):
    """Sleeps."""

    name = "sleep"
    record_type = SleepRecord
    settings_type = SleepSettings

    count: int = given("how many", kind="count", default=1, affects=False)

    def make_requests(self) -> list[Request]:
        return [Request(f"job-{number:07d}") for number in range(self.count)]

    def jobs(self, checked, width) -> list[Job]:
        empty = torch.zeros(1)
        return [Job(request.id, empty, empty, None, []) for request in checked]

    def explain(self, result: Result) -> SleepRecord:
        return SleepRecord.of(result, settings=self.run_settings, before=None)


def load(seconds: float, faults: str, count: int):
    """What an actor calls once."""
    task = Sleep(engine=SleepEngine(seconds, Path(faults)), count=count)
    by_id = {request.id: request for request in task.requests}
    return lambda rows: (task, [by_id[row["id"]] for row in rows])
