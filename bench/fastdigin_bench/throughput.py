"""How fast is the engine beside a plain loop? Whole counterfactuals of packaged photos.

    fastdigin bench throughput

Both sides get the same photos, classifier and settings, and do all of the work: inversion, schedule
search, optimisation. Before a ratio is printed the first gradients of a job must agree, and then
the final losses. Each runs in one process with all threads and in two with one thread each
(--workers 2), in turns: a share of the jobs by the engine, a photo by the plain loop, and so on.
The engine's figure is that of its faster form. Seconds are those of an image; a ratio is that of
the medians, its range that of the extremes. The plain loop has no batch to fill and takes as long
for every photo, so the few that it is timed on (``plain_images``) stand for all. Steps that
``--compile on`` compiles are compiled before anything is timed (``warm_up_seconds``). Last, what
each idea is worth (causes.py).
"""

from __future__ import annotations

import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from fastdigin.commands.task_options import load_engine
from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Job
from fastdigin.engine.memory import parse_memory
from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import EMBEDDED
from fastdigin.report.console import table
from fastdigin.tasks import counterfactual as cf
from fastdigin.tasks.inputs import ImageInput, collect
from fastdigin_bench import plain_photo, processes
from fastdigin_bench.agreement import TOLERANCE, gradient_errors
from fastdigin_bench.causes import Cause, find_causes
from fastdigin_bench.equivalents import forward_equivalents
from fastdigin_bench.output import conditions, print_last_line, results_folder, write_json
from fastdigin_bench.plain_model import PlainModel
from fastdigin_bench.precision import gradient_cosines
from fastdigin_bench.text_jobs import text_jobs

CLASSIFIER = "embedded:robust"
LOSS_TOLERANCE = 1.02
"""The engine's mean final loss may be this much above the plain loop's: Adam amplifies rounding."""

ENGINE, SINGLE, PLAIN = "engine", "engine, a single job", "plain loop"
ENGINE_TWO, PLAIN_TWO = (f"{side}, two processes of one thread" for side in (ENGINE, PLAIN))


@dataclass(frozen=True)
class Sides:
    """What both sides work with. plain: the same networks as the engine's, None where not asked."""

    engine: Engine
    plain: PlainModel | None
    classifier: Classifier
    settings: cf.CounterfactualSettings


@dataclass
class Timings:
    """seconds: an image, of each run, by who made it. losses: smallest totals, by job id."""

    seconds: dict[str, list[float]]
    losses: dict[str, dict[str, float]]

    def per_minute(self, name: str) -> float:
        return 60 / statistics.median(self.seconds[name])


def run(options: Namespace) -> int:
    """Prints the tables and the last line. UserError where the two sides do not agree."""
    if options.one_process is not None:
        return _one_process(options)
    file = results_folder(options.results) / "throughput.json"
    engine = load_engine(EMBEDDED, options.memory, options.slots, compile=options.compile)
    sides = Sides(engine, PlainModel(engine.model), load_classifier(), _settings(options))
    items = collect(["embedded:pairs"], options.jobs)
    _say(f"{len(items)} jobs in {min(engine.slots, len(items))} slots")
    warm_up_seconds = warm_up(sides, items[: engine.slots], options)

    timings, jobs, agreement = time_rounds(sides, items, options)
    occupancy, plan = engine.occupancy, engine.plan
    time_single(sides, items[:1], timings, options)
    loss_ratio = _loss_ratio(timings)
    results = {
        "conditions": conditions() | {"plan": str(plan), "compile": options.compile},
        "jobs": len(items),
        "warm_up_seconds": round(warm_up_seconds, 1),
        **_figures(timings),
        "gradient_agreement": agreement,
        "final_loss_ratio": round(loss_ratio, 4),
        "forward_equivalents_per_step": forward_equivalents(engine, jobs[:2]),
        "bf16_gradient_cosine": _rounded(gradient_cosines(engine.model, jobs[0], torch.bfloat16)),
        "slot_occupancy": round(occupancy, 3),
        "recompiles": engine.recompiles,
    }
    print(_table(timings), "\n", flush=True)
    write_json(file, results)  # the causes take a while, and may fail
    if options.cause_repeats:
        one_update = [replace(j, settings=replace(j.settings, iterations=1)) for j in jobs]
        causes, outside = find_causes(
            engine.model,
            sides.classifier,
            one_update,
            engine.slots,
            options.cause_repeats,
            plan.compiled,
        )
        print(_causes_table(causes), "\n", flush=True)
        results |= {
            "causes": {name: _rounded(asdict(cause)) for name, cause in causes.items()},
            "outside_networks": round(outside, 4),
        }
    write_json(file, results)
    print_last_line(results)
    return 0


def warm_up(sides: Sides, items: Sequence[ImageInput], options: Namespace) -> float:
    """Chooses, plans, and with --compile on compiles all graphs of the photos; its seconds."""
    began = time.perf_counter()
    if options.compile == "on":
        settings = replace(sides.settings, null_text_steps=1)
        settings = replace(settings, optimisation=replace(settings.optimisation, iterations=1))
        found = cf.counterfactuals(sides.engine, items, sides.classifier, settings=settings)
    else:
        found = sides.engine.run(text_jobs(sides.engine.model, sides.classifier, 2, 1, 1))
    failed = [each for each in found if each.status != "done"]
    if failed:
        raise RuntimeError(f"a job of the bench failed: {failed[0]}")
    return time.perf_counter() - began


def time_rounds(
    sides: Sides, items: Sequence[ImageInput], options: Namespace
) -> tuple[Timings, list[Job], float]:
    """All forms in turns: (timings, the engine's jobs of the first round, gradients' error).

    UserError if the first gradients do not agree.
    """
    timings = Timings({ENGINE: [], PLAIN: []}, {ENGINE: {}, PLAIN: {}})
    first: list[Job] = []
    size = -(-len(items) // options.rounds)
    in_two = options.processes and len(items) >= processes.COUNT
    for start in range(0, len(items), size):
        share = items[start : start + size]
        jobs = time_engine(sides, share, timings, ENGINE)
        if not first:
            first = jobs
            agreement = max(gradient_errors(sides.engine, sides.plain, first[0]).values())
            if agreement > TOLERANCE:
                raise UserError(
                    f"the first gradients differ by {agreement:.1e}, more than {TOLERANCE}: "
                    "speeds of different computations are not compared"
                )
            _say(f"first gradients agree to {agreement:.1e}")
        if in_two:
            # All jobs in every round: half a share would leave slots of a process empty.
            _time_processes(ENGINE_TWO, processes.ENGINE, 0, len(items), timings, options)
        time_plain(sides, share[0], timings)
        if in_two:
            _time_processes(PLAIN_TWO, processes.PLAIN, start, processes.COUNT, timings, options)
    return timings, first, agreement


def _time_processes(name, side, start, count, timings: Timings, options: Namespace) -> None:
    # The last round may be short, and every process needs a photo.
    start = max(0, min(start, options.jobs - count))
    seconds = processes.seconds_an_image(side, start, start + count, options)
    timings.seconds.setdefault(name, []).append(seconds)
    _say(f"{name}: {seconds:.1f} s an image")


def time_plain(sides: Sides, item: ImageInput, timings: Timings) -> None:
    """Times one whole counterfactual by the plain loop."""
    began = time.perf_counter()
    found = plain_photo.counterfactual(sides.plain, item, sides.classifier, sides.settings)
    timings.seconds[PLAIN].append(time.perf_counter() - began)
    (id,) = cf.job_ids([item], sides.classifier)
    timings.losses[PLAIN][id] = _best(found.result.history)
    _say(f"{PLAIN}: {timings.seconds[PLAIN][-1]:.1f} s an image")


def time_single(
    sides: Sides, items: Sequence[ImageInput], timings: Timings, options: Namespace
) -> None:
    """Times one job alone. Compiled, it has a batch of its own size: another would be filled up."""
    if options.compile == "on":
        engine = load_engine(EMBEDDED, options.memory, 1, compile=options.compile)
        sides = replace(sides, engine=engine)
        warm_up(sides, items, options)
    time_engine(sides, items, timings, SINGLE)


def time_engine(
    sides: Sides, items: Sequence[ImageInput], timings: Timings, name: str
) -> list[Job]:
    """Times whole counterfactuals; the jobs that were optimised."""
    began = time.perf_counter()
    found = list(cf.counterfactuals(sides.engine, items, sides.classifier, settings=sides.settings))
    seconds = time.perf_counter() - began
    failed = [each.record["error"] for each in found if each.status != "done"]
    if failed:
        raise RuntimeError(f"a job of the bench failed: {failed[0]}")
    timings.seconds.setdefault(name, []).append(seconds / len(items))
    if name == ENGINE:
        timings.losses[name] |= {each.id: _best(each.result.history) for each in found}
    _say(f"{name}: {timings.seconds[name][-1]:.1f} s an image")
    return [each.result.job for each in found]


def _loss_ratio(timings: Timings) -> float:
    """Of the mean final losses on the plain loop's photos. UserError if the engine's is worse."""
    plain = timings.losses[PLAIN]
    ratio = statistics.mean(timings.losses[ENGINE][id] for id in plain) / statistics.mean(
        plain.values()
    )
    if ratio > LOSS_TOLERANCE:
        raise UserError(
            f"the engine's mean final loss is {ratio:.3f} of the plain loop's: "
            "a speed-up for worse results is not reported"
        )
    return ratio


def _figures(timings: Timings) -> dict[str, Any]:
    forms = [name for name in (ENGINE, ENGINE_TWO) if name in timings.seconds]
    best = max(forms, key=timings.per_minute)
    fast, slow = timings.seconds[best], timings.seconds[PLAIN]
    engine = timings.per_minute(best)
    figures = {
        "plain_images": len(slow),
        "engine_images_per_min": engine,
        "plain_images_per_min": timings.per_minute(PLAIN),
        "ratio": engine / timings.per_minute(PLAIN),
        "ratio_low": min(slow) / max(fast),
        "ratio_high": max(slow) / min(fast),
        "one_process_ratio": timings.per_minute(ENGINE) / timings.per_minute(PLAIN),
        "single_job_ratio": timings.per_minute(SINGLE) / timings.per_minute(PLAIN),
    }
    if PLAIN_TWO in timings.seconds:
        figures["two_process_ratio"] = engine / timings.per_minute(PLAIN_TWO)
    seconds = {name: [round(s, 2) for s in each] for name, each in timings.seconds.items()}
    return {"engine_form": best} | _rounded(figures) | {"seconds_per_image": seconds}


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in figures.items()}


def _table(timings: Timings) -> str:
    rows = [
        [
            name,
            f"{timings.per_minute(name):.2f}",
            f"{timings.per_minute(name) / timings.per_minute(PLAIN):.1f}x",
            " ".join(f"{each:.1f}" for each in seconds),
        ]
        for name, seconds in timings.seconds.items()
    ]
    return table(["", "images/min", "of the plain loop", "seconds an image, by run"], rows)


def _causes_table(causes: Mapping[str, Cause]) -> str:
    rows = [
        [name, f"{cause.factor:.2f}x", f"{cause.low:.2f} to {cause.high:.2f}"]
        for name, cause in causes.items()
    ]
    return table(["the engine without", "takes", "range"], rows)


def _best(history) -> float:
    return min(row["total"] for row in history)


def _settings(options: Namespace) -> cf.CounterfactualSettings:
    """The embedded defaults; ``--iterations`` for a quick look."""
    settings = cf.EMBEDDED
    if options.iterations is None:
        return settings
    return replace(
        settings, optimisation=replace(settings.optimisation, iterations=options.iterations)
    )


def load_classifier() -> Classifier:
    """The one that both sides explain."""
    return Classifier.load(CLASSIFIER)


def _one_process(options: Namespace) -> int:
    """One of two processes: times its share and prints the seconds."""
    share, settings = options.one_process, _settings(options)
    items = share.of(collect(["embedded:pairs"], options.jobs))
    if share.side == processes.PLAIN:
        plain = PlainModel(load_engine(EMBEDDED, slots=1).model)
        classifier, start = load_classifier(), time.perf_counter()
        for item in items:
            plain_photo.counterfactual(plain, item, classifier, settings)
        seconds = time.perf_counter() - start
    else:
        # Both plan at once: each may have half of what is free.
        device = torch.device("cpu")
        memory = parse_memory(options.memory, device) // processes.COUNT
        engine = load_engine(EMBEDDED, memory, options.slots, compile=options.compile)
        sides = Sides(engine, None, load_classifier(), settings)
        warm_up(sides, items[: engine.slots], options)
        timings = Timings({}, {})
        time_engine(sides, items, timings, ENGINE_TWO)
        seconds = timings.seconds[ENGINE_TWO][0] * len(items)
    print_last_line({"seconds": seconds})
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
