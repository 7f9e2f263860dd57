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
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch

from fastdigin.commands.task import load_engine
from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Job
from fastdigin.engine.memory import parse_memory
from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import EMBEDDED
from fastdigin.photos import ImageInput, collect
from fastdigin.tasks.counterfactual import EMBEDDED as EMBEDDED_SETTINGS
from fastdigin.tasks.counterfactual import Counterfactuals, CounterfactualSettings
from fastdigin_bench import plain_photo
from fastdigin_bench.agreement import gradient_error
from fastdigin_bench.causes import Cause, causes_of, time_variants, variants
from fastdigin_bench.equivalents import forward_equivalents
from fastdigin_bench.output import conditions, finish, rows_table, say, write_json
from fastdigin_bench.plain_model import PlainModel
from fastdigin_bench.precision import gradient_cosines
from fastdigin_bench.processes import in_processes
from fastdigin_bench.text_jobs import none_failed, run_all, text_jobs

CLASSIFIER = "embedded:robust"
LOSS_TOLERANCE = 1.02
"""The engine's mean final loss may be this much above the plain loop's: Adam amplifies rounding."""

ENGINE, SINGLE, PLAIN = "engine", "engine, a single job", "plain loop"
PROCESSES = 2
IN_TWO = {side: f"{side}, two processes of one thread" for side in (ENGINE, PLAIN)}


@dataclass(frozen=True)
class Sides:
    """What both sides work with. plain: the same networks as the engine's, None where not asked."""

    engine: Engine
    plain: PlainModel | None
    classifier: Classifier
    settings: CounterfactualSettings

    def task(self, items: Sequence[ImageInput]) -> Counterfactuals:
        return Counterfactuals(
            engine=self.engine, photos=items, classifier=self.classifier, settings=self.settings
        )


@dataclass
class Timings:
    """seconds: an image, of each run, by who made it. losses: smallest totals, by job id."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    losses: dict[str, dict[str, float]] = field(default_factory=lambda: {ENGINE: {}, PLAIN: {}})

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name].append(seconds)
        say(f"{name}: {seconds:.1f} s an image")

    def per_minute(self, name: str) -> float:
        return 60 / statistics.median(self.seconds[name])


InTwo = Callable[[str, Sequence[ImageInput]], float]


def run(options: Namespace) -> int:
    """Prints the tables and the last line. UserError where the two sides do not agree."""
    engine = load_engine(EMBEDDED, options.memory, options.slots, compile=options.compile)
    classifier = Classifier.load(CLASSIFIER)
    model = engine.model
    sides = Sides(engine, PlainModel(model), classifier, _settings(options))
    items = collect(["embedded:pairs"], options.jobs)
    say(f"{len(items)} jobs in {min(engine.slots, len(items))} slots")
    warm_up_seconds = warm_up(sides, items[: engine.slots], options.compile)

    two = options.processes and len(items) >= PROCESSES
    in_two = partial(seconds_in_two, options) if two else None
    timings, jobs, agreement = time_rounds(sides, items, options.rounds, in_two)
    occupancy, plan = engine.occupancy, engine.plan
    if options.compile == "on":
        # Alone it has a batch of its own size: another would be filled up.
        engine = load_engine(EMBEDDED, options.memory, 1, compile=options.compile)
        warm_up(replace(sides, engine=engine), items[:1], options.compile)
    time_engine(replace(sides, engine=engine), items[:1], timings, SINGLE)
    results = {
        "conditions": conditions() | {"plan": str(plan), "compile": options.compile},
        "jobs": len(items),
        "warm_up_seconds": round(warm_up_seconds, 1),
        **figures(timings),
        "gradient_agreement": agreement,
        "final_loss_ratio": round(loss_ratio(timings.losses), 4),
        "forward_equivalents_per_step": forward_equivalents(sides.engine, jobs[:2]),
        "bf16_gradient_cosine": _rounded(
            gradient_cosines(sides.engine.model, jobs[0], torch.bfloat16)
        ),
        "slot_occupancy": round(occupancy, 3),
        "recompiles": sides.engine.recompiles,
    }
    print(_forms_table(timings), "\n", flush=True)
    file = options.results / "throughput.json"
    write_json(file, results)  # the causes take a while, and may fail
    if options.cause_repeats:
        one_update = [replace(j, settings=replace(j.settings, iterations=1)) for j in jobs]
        engines = variants(
            model, classifier, sides.engine.slots, jobs[0].settings.steps,
            plan.compiled,
        )  # fmt: skip
        causes, outside = causes_of(time_variants(engines, one_update, options.cause_repeats))
        print(_causes_table(causes), "\n", flush=True)
        results |= {
            "causes": {name: _rounded(asdict(cause)) for name, cause in causes.items()},
            "outside_networks": round(outside, 4),
        }
    finish(file, results)
    return 0


def warm_up(sides: Sides, items: Sequence[ImageInput], compile: str) -> float:
    """Chooses, plans, and where compile is "on" compiles all graphs of the photos; its seconds."""
    began = time.perf_counter()
    if compile == "on":
        once = replace(sides.settings.optimisation, iterations=1)
        settings = replace(sides.settings, null_text_steps=1, optimisation=once)
        time_engine(replace(sides, settings=settings), items)
    else:
        run_all(sides.engine, text_jobs(sides.engine.model, sides.classifier, 2, 1, 1))
    return time.perf_counter() - began


def time_rounds(
    sides: Sides, items: Sequence[ImageInput], rounds: int, in_two: InTwo | None
) -> tuple[Timings, list[Job], float]:
    """All forms in turns: (timings, the engine's jobs of the first round, gradients' error).

    in_two: seconds an image of two processes, from a side and its photos; None leaves them out.
    UserError if the first gradients do not agree.
    """
    timings, size = Timings(), -(-len(items) // rounds)
    for start in range(0, len(items), size):
        share = items[start : start + size]
        jobs = time_engine(sides, share, timings, ENGINE)
        if start == 0:
            first, agreement = jobs, gradient_error(sides.engine, sides.plain, jobs[0])
            say(f"first gradients agree to {agreement:.1e}")
        if in_two:
            # All jobs in every round: half a share would leave slots of a process empty.
            timings.add(IN_TWO[ENGINE], in_two(ENGINE, items))
        time_plain(sides, share[0], timings)
        if in_two:
            # The last round may be short, and every process needs a photo.
            photos = items[max(0, min(start, len(items) - PROCESSES)) :][:PROCESSES]
            timings.add(IN_TWO[PLAIN], in_two(PLAIN, photos))
    return timings, first, agreement


def time_plain(sides: Sides, item: ImageInput, timings: Timings) -> None:
    """Times one whole counterfactual by the plain loop."""
    began = time.perf_counter()
    found = plain_photo.counterfactual(sides.plain, sides.task([item])).result
    timings.add(PLAIN, time.perf_counter() - began)
    timings.losses[PLAIN][found.id] = _best(found.history)


def time_engine(
    sides: Sides, items: Sequence[ImageInput], timings: Timings | None = None, name: str = ""
) -> list[Job]:
    """Times whole counterfactuals; the jobs that were optimised."""
    began = time.perf_counter()
    found = none_failed(sides.task(items).run())
    seconds = time.perf_counter() - began
    if timings is not None:
        timings.add(name, seconds / len(items))
        timings.losses.get(name, {}).update({f.id: _best(f.result.history) for f in found})
    return [each.result.job for each in found]


def seconds_in_two(options: Namespace, side: str, items: Sequence[ImageInput]) -> float:
    """Seconds until the slower of two processes is through with its half, per image of both."""
    halves = [(side, items[first::PROCESSES], options) for first in range(PROCESSES)]
    seconds = in_processes(share_seconds, halves, OMP_NUM_THREADS="1", TQDM_DISABLE="1")
    return max(seconds) / len(items)


def share_seconds(side: str, items: Sequence[ImageInput], options: Namespace) -> float:
    """Seconds that the images take one of the two processes.

    From inside, because the time to start Python, to load a model and to compile is nobody's
    method.
    """
    classifier, settings = Classifier.load(CLASSIFIER), _settings(options)
    if side == PLAIN:
        sides = Sides(load_engine(EMBEDDED, slots=1), None, classifier, settings)
        sides = replace(sides, plain=PlainModel(sides.engine.model))
    else:
        # Both plan at once: each may have half of what is free.
        memory = parse_memory(options.memory, torch.device("cpu")) // PROCESSES
        engine = load_engine(EMBEDDED, memory, options.slots, compile=options.compile)
        sides = Sides(engine, None, classifier, settings)
        warm_up(sides, items[: engine.slots], options.compile)
    began = time.perf_counter()
    if side == PLAIN:
        for item in items:
            plain_photo.counterfactual(sides.plain, sides.task([item]))
    else:
        time_engine(sides, items)
    return time.perf_counter() - began


def loss_ratio(losses: Mapping[str, Mapping[str, float]]) -> float:
    """Of the mean final losses on the plain loop's photos. UserError if the engine's is worse."""
    plain = losses[PLAIN]
    engine = statistics.mean(losses[ENGINE][id] for id in plain)
    ratio = engine / statistics.mean(plain.values())
    if not ratio <= LOSS_TOLERANCE:
        raise UserError(
            f"the engine's mean final loss is {ratio:.3f} of the plain loop's: "
            "a speed-up for worse results is not reported"
        )
    return ratio


def figures(timings: Timings) -> dict[str, Any]:
    """Images a minute and ratios, those of the engine's faster form."""
    per_minute = {name: timings.per_minute(name) for name in timings.seconds}
    best = max((n for n in (ENGINE, IN_TWO[ENGINE]) if n in per_minute), key=per_minute.get)
    fast, slow = timings.seconds[best], timings.seconds[PLAIN]
    found = {
        "engine_images_per_min": per_minute[best],
        "plain_images_per_min": per_minute[PLAIN],
        "ratio": per_minute[best] / per_minute[PLAIN],
        "ratio_low": min(slow) / max(fast),
        "ratio_high": max(slow) / min(fast),
        "one_process_ratio": per_minute[ENGINE] / per_minute[PLAIN],
        "single_job_ratio": per_minute[SINGLE] / per_minute[PLAIN],
    }
    if IN_TWO[PLAIN] in per_minute:
        found["two_process_ratio"] = per_minute[best] / per_minute[IN_TWO[PLAIN]]
    seconds = {name: [round(s, 2) for s in each] for name, each in timings.seconds.items()}
    return {
        "engine_form": best,
        "plain_images": len(slow),
        **_rounded(found),
        "seconds_per_image": seconds,
    }


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in figures.items()}


def _forms_table(timings: Timings) -> str:
    plain = timings.per_minute(PLAIN)
    rows = [
        {"name": name, "per_minute": timings.per_minute(name), "seconds": seconds}
        for name, seconds in timings.seconds.items()
    ]
    columns = {
        "": "name",
        "images/min": lambda row: f"{row['per_minute']:.2f}",
        "of the plain loop": lambda row: f"{row['per_minute'] / plain:.1f}x",
        "seconds an image, by run": lambda row: " ".join(f"{s:.1f}" for s in row["seconds"]),
    }
    return rows_table(rows, columns)


def _causes_table(causes: Mapping[str, Cause]) -> str:
    columns = {
        "the engine without": "name",
        "takes": lambda row: f"{row['factor']:.2f}x",
        "range": lambda row: f"{row['low']:.2f} to {row['high']:.2f}",
    }
    return rows_table([{"name": name, **asdict(c)} for name, c in causes.items()], columns)


def _best(history) -> float:
    return min(row["total"] for row in history)


def _settings(options: Namespace) -> CounterfactualSettings:
    """The embedded defaults; ``--iterations`` for a quick look."""
    settings = EMBEDDED_SETTINGS
    if options.iterations is None:
        return settings
    return replace(
        settings, optimisation=replace(settings.optimisation, iterations=options.iterations)
    )
