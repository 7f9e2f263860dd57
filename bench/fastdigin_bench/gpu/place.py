"""Where the parts of the bench run, and what they share: models, jobs, clocks."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from fastdigin import hardware
from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Job
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.models.precision import choose_dtype
from fastdigin_bench.profile.networks import build
from fastdigin_bench.profile.workload import task_class
from fastdigin_bench.text_jobs import text_jobs


@dataclass(frozen=True)
class Place:
    """tiny: the embedded model at a few steps, to see that everything runs."""

    device: torch.device
    tiny: bool

    def models(
        self, name: str, dtype: torch.dtype | None = None
    ) -> tuple[LatentDiffusion, Classifier]:
        """name: of profile.networks. Weights are drawn from a fixed seed. dtype: None for auto."""
        torch.manual_seed(0)
        dtype = dtype or choose_dtype("auto", self.device)
        return build("embedded" if self.tiny else name, dtype, self.device)

    def settings(self, task: str, model: LatentDiffusion, iterations: int | None = None) -> Any:
        """The task's defaults; with ``tiny`` or ``iterations``, shorter."""
        settings = task_class(task).default_settings(model)
        steps = 2 if self.tiny else settings.optimisation.steps
        iterations = 1 if self.tiny else iterations or settings.optimisation.iterations
        short = replace(settings.optimisation, steps=steps, iterations=iterations)
        lasting = ("null_text_steps", "draws", "samples_per_word") if self.tiny else ()
        once = {name: 1 for name in lasting if hasattr(settings, name)}
        return replace(settings, optimisation=short, **once)

    def jobs(
        self, model: LatentDiffusion, classifier: Classifier, count: int, **settings: Any
    ) -> list[Job]:
        """Disagreements' kind of job: a sample of a prompt, one classifier, crops."""
        known = {"steps": 2 if self.tiny else model.usual_steps, "iterations": 2}
        known["guidance_scale"] = model.usual_guidance_scale
        return text_jobs(model, classifier, count, **known | settings)

    def seconds(self) -> float:
        """A clock that waits for the device."""
        return hardware.of(self.device).seconds()


class StageClock:
    """Seconds of stages, by CUDA events where there are any: nothing waits for the clock."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any, Any]] = []
        self._inside = False

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times what is inside; a stage within a stage belongs to the outer one."""
        if self._inside:
            yield
            return
        self._inside, start = True, self._mark()
        try:
            yield
        finally:
            self._inside = False
            self._marks.append((name, start, self._mark()))

    def read(self) -> dict[str, float]:
        """Seconds of each stage so far."""
        if self._cuda:
            torch.cuda.synchronize()
        found: dict[str, float] = defaultdict(float)
        for name, start, end in self._marks:
            found[name] += start.elapsed_time(end) / 1e3 if self._cuda else end - start
        return {name: round(seconds, 4) for name, seconds in found.items()}

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def iterate(engine: Engine, jobs: list[Job], clock) -> tuple[list[float], list]:
    """(seconds of each call of ``engine.step`` with updates, results). jobs: equally long."""
    engine.submit(jobs)
    times, results = [], []
    while engine.busy:
        start = clock()
        results += engine.step()
        times.append(clock() - start)
    return times[:-1], results  # the last call only evaluates
