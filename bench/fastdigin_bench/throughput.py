"""How fast is the engine beside a plain loop? Whole counterfactuals of packaged photos.

    fastdigin bench throughput

Both sides get the same photos, classifier and settings, and do all of the work: inversion, schedule
search, optimisation. Before anything is timed the first gradients of a job must agree; before a
ratio is printed the final losses must. The runs are interleaved: one of the engine over all jobs,
some photos of the plain loop, and so on; the ratio is that of the medians, its range that of the
extremes. The plain loop has no batch to fill, so some of the photos stand for all.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from fastdigin.commands import load_engine
from fastdigin.engine.batch import BatchSteps
from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Job
from fastdigin.engine.sampler import StepFunctions, guided_step, unrolled_backward, unrolled_forward
from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import EMBEDDED
from fastdigin.report.console import table
from fastdigin.tasks import counterfactual as cf
from fastdigin.tasks.inputs import ImageInput, collect
from fastdigin_bench import plain_photo
from fastdigin_bench.agreement import TOLERANCE, gradient_errors
from fastdigin_bench.counters import FlopCounter
from fastdigin_bench.output import conditions, print_last_line, results_folder, write_json
from fastdigin_bench.plain_model import PlainModel

CLASSIFIER = "embedded:robust"
LOSS_TOLERANCE = 1.02
"""The engine's mean final loss may be this much above the plain loop's: Adam amplifies rounding."""


@dataclass(frozen=True)
class Timing:
    """seconds: of each repeat, for ``images`` images."""

    images: int
    seconds: Sequence[float]

    @property
    def per_minute(self) -> float:
        return 60 * self.images / statistics.median(self.seconds)


def run(options: Namespace) -> int:
    """Prints the table and the last line. UserError where the two sides do not agree."""
    if options.one_process is not None:
        return _one_process(options)
    file = results_folder(options.results) / "throughput.json"
    engine, classifier = load_engine(EMBEDDED, options.memory, options.slots), _classifier()
    plain = PlainModel(engine.model)
    items = collect(["embedded:pairs"], options.jobs)
    names, settings = cf.job_ids(items, classifier), _settings(options)
    _say(f"{len(items)} jobs in {min(engine.slots, len(items))} slots")

    agreement = max(
        gradient_errors(engine, plain, _job(engine, items[0], classifier, settings)).values()
    )
    if agreement > TOLERANCE:
        raise UserError(
            f"the first gradients differ by {agreement:.1e}, more than {TOLERANCE}: "
            "speeds of different computations are not compared"
        )
    _say(f"first gradients agree to {agreement:.1e}")

    engine_seconds, single_seconds, plain_seconds = [], [], []
    engine_losses: dict[str, float] = {}
    plain_losses: dict[str, float] = {}
    for repeat in range(options.repeats):
        seconds, engine_losses = _time_engine(engine, items, classifier, settings)
        engine_seconds.append(seconds)
        _say(f"engine: {60 * len(items) / seconds:.2f} images a minute")
        seconds, _ = _time_engine(engine, items[:1], classifier, settings)
        single_seconds.append(seconds)
        item = items[repeat % len(items)]
        start = time.perf_counter()
        found = plain_photo.counterfactual(plain, item, classifier, settings)
        plain_seconds.append(time.perf_counter() - start)
        plain_losses[names[repeat % len(items)]] = _best(found.result.history)
        _say(f"plain loop: {60 / plain_seconds[-1]:.2f} images a minute")
    two_seconds = [_two_processes(options) for _ in range(options.process_repeats)]

    loss_ratio = statistics.mean(engine_losses[id] for id in plain_losses) / statistics.mean(
        plain_losses.values()
    )
    if loss_ratio > LOSS_TOLERANCE:
        raise UserError(
            f"the engine's mean final loss is {loss_ratio:.3f} of the plain loop's: "
            "a speed-up for worse results is not reported"
        )
    timings = {
        "engine": Timing(len(items), engine_seconds),
        "engine, a single job": Timing(1, single_seconds),
        "plain loop": Timing(1, plain_seconds),
    }
    if two_seconds:
        timings["plain loop, two processes of one thread"] = Timing(2, two_seconds)
    results = _results(engine, timings, agreement, loss_ratio) | {
        "jobs": len(items),
        "forward_equivalents_per_step": forward_equivalents(
            engine, [_job(engine, item, classifier, settings) for item in items[: engine.slots]]
        ),
    }
    print(_table(timings))
    results = {"conditions": conditions() | {"plan": str(engine.plan)}, **results}
    write_json(file, results)
    print_last_line(results)
    return 0


def forward_equivalents(engine: Engine, jobs: Sequence[Job]) -> dict[str, float]:
    """An iteration's arithmetic in convolutions and linear layers, over that of T forwards.

    Counted, not timed, with no step kept and with all: forward and input gradient are 2.0.
    """
    model, steps = engine.model, BatchSteps(engine.model, jobs, engine.model.state_dtype)
    z = torch.stack([job.latents for job in jobs])
    per_step = (len(steps), -1, -1)
    cond = torch.stack([job.conditioning.expand(per_step) for job in jobs])
    null = torch.stack([job.null_text.expand(per_step) for job in jobs])
    with FlopCounter() as once, torch.no_grad():
        guided_step(model, z, cond[:, -1], null[:, -1], steps[-1])
    found = {}
    for name, kept_steps in (("recomputed", 0), ("kept", len(steps))):
        with FlopCounter() as counter:
            run = unrolled_forward(StepFunctions(model), z, cond, null, steps, 1, kept_steps)
            unrolled_backward(
                StepFunctions(model), run.inputs, cond, null, steps, [z], kept=run.kept
            )
        total = counter.flops["convolution"] + counter.flops["linear"]
        forward = once.flops["convolution"] + once.flops["linear"]
        found[name] = round(total / (forward * len(steps)), 3)
    return found


def _results(engine: Engine, timings, agreement: float, loss_ratio: float) -> dict:
    fast, slow = timings["engine"], timings["plain loop"]
    ratio = fast.per_minute / slow.per_minute
    per_image = [s / fast.images for s in fast.seconds]
    results = {
        "engine_images_per_min": round(fast.per_minute, 3),
        "plain_images_per_min": round(slow.per_minute, 3),
        "ratio": round(ratio, 2),
        "ratio_low": round(min(slow.seconds) / max(per_image), 2),
        "ratio_high": round(max(slow.seconds) / min(per_image), 2),
        "single_job_ratio": round(timings["engine, a single job"].per_minute / slow.per_minute, 2),
        "gradient_agreement": agreement,
        "final_loss_ratio": round(loss_ratio, 4),
        "slot_occupancy": round(engine.occupancy, 3),
        "seconds": {name: [round(s, 2) for s in t.seconds] for name, t in timings.items()},
    }
    two = timings.get("plain loop, two processes of one thread")
    if two is not None:
        results["two_process_ratio"] = round(fast.per_minute / two.per_minute, 2)
    return results


def _table(timings: dict[str, Timing]) -> str:
    base = timings["plain loop"].per_minute
    rows = [
        [name, f"{t.per_minute:.2f}", f"{t.per_minute / base:.1f}x", str(len(t.seconds))]
        for name, t in timings.items()
    ]
    return table(["", "images/min", "of the plain loop", "runs"], rows)


def _time_engine(engine, items, classifier, settings) -> tuple[float, dict[str, float]]:
    """(seconds, job id -> smallest total loss) of whole counterfactuals."""
    start = time.perf_counter()
    found = list(cf.counterfactuals(engine, items, classifier, settings=settings))
    seconds = time.perf_counter() - start
    return seconds, {each.id: _best(each.result.history) for each in found}


def _best(history) -> float:
    return min(row["total"] for row in history)


def _job(engine: Engine, item: ImageInput, classifier, settings) -> Job:
    """The very job that the task optimises for a photo."""
    evaluated = replace(settings, optimisation=replace(settings.optimisation, iterations=0))
    (found,) = cf.counterfactuals(engine, [item], classifier, settings=evaluated)
    return replace(found.result.job, settings=settings.optimisation)


def _settings(options: Namespace) -> cf.CounterfactualSettings:
    """The embedded defaults; ``--iterations`` for a quick look."""
    settings = cf.EMBEDDED
    if options.iterations is None:
        return settings
    return replace(
        settings, optimisation=replace(settings.optimisation, iterations=options.iterations)
    )


def _classifier() -> Classifier:
    return Classifier.load(CLASSIFIER)


def _two_processes(options: Namespace) -> float:
    """Seconds of two processes side by side, each with one thread and one photo of its own."""
    command = [sys.executable, "-m", "fastdigin.cli", "bench", "throughput"]
    if options.iterations is not None:
        command += ["--iterations", str(options.iterations)]
    place = os.environ | {"OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([*command, "--one-process", str(k)], stdout=subprocess.PIPE, env=place)
        for k in range(2)
    ]
    outputs = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError("a process of the plain loop failed; its message is above")
    # From inside: the time to start Python and load the model is nobody's method.
    return max(json.loads(output.splitlines()[-1])["seconds"] for output in outputs)


def _one_process(options: Namespace) -> int:
    item = collect(["embedded:pairs"], options.one_process + 1)[-1]
    plain = PlainModel(load_engine(EMBEDDED, slots=1).model)
    start = time.perf_counter()
    plain_photo.counterfactual(plain, item, _classifier(), _settings(options))
    print_last_line({"seconds": time.perf_counter() - start})
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
