"""How fast is the engine beside a plain loop? Whole counterfactuals of packaged photos.

    fastdigin bench throughput

Both sides get the same photos, classifier and settings, and do all of the work: inversion, schedule
search, optimisation. Before a ratio is printed the first gradients of a job must agree, and then
the final losses, with the settings of the plain loop: those of the preset exact. The engine also
runs with the preset fast, which computes something else: whether its explanations are as good is
for ``bench truth --compare`` to say.

Each runs in one process with all threads and in two with one thread each (--workers 2), in turns: a
share of the jobs by the engine, a photo by the plain loop, and so on. The engine's figure is that
of its faster form. Seconds are those of an image; a ratio is that of the medians, its range that of
the extremes. The plain loop has no batch to fill and takes as long for every photo, so the few that
it is timed on (``plain_images``) stand for all. Steps that ``--compile on`` compiles are compiled
before anything is timed (``warm_up_seconds``). Last, what each idea is worth (causes.py).
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from statistics import mean, median
from typing import Any

import torch

from fastdigin.commands.task import load_engine
from fastdigin.engine.engine import Engine
from fastdigin.engine.job import Job, Result
from fastdigin.engine.memory import parse_memory
from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import EMBEDDED
from fastdigin.photos import ImageInput, collect
from fastdigin.presets import EXACT, FAST, Algorithm
from fastdigin.tasks.counterfactual import EMBEDDED as EMBEDDED_SETTINGS
from fastdigin.tasks.counterfactual import Counterfactuals, CounterfactualSettings
from fastdigin_bench import plain_photo
from fastdigin_bench.causes import causes_of, variants
from fastdigin_bench.equivalents import forward_equivalents
from fastdigin_bench.gradients import (
    engine_first_gradients,
    gradient_error,
    precision_cosines,
)
from fastdigin_bench.output import conditions, finish, rows_table, say, write_json
from fastdigin_bench.plain_loop import first_gradients
from fastdigin_bench.plain_model import PlainModel
from fastdigin_bench.processes import in_processes
from fastdigin_bench.text_jobs import none_failed, run_all, text_jobs
from fastdigin_bench.timing import Ratio, seconds_of, time_in_turns

CLASSIFIER = "embedded:robust"
LOSS_TOLERANCE = 1.02
"""The engine's mean final loss may be this much above the plain loop's: Adam amplifies rounding."""

ENGINE, SINGLE, PLAIN = "engine", "engine, a single job", "plain loop"
FAST_ENGINE, EXACT_ENGINE = "engine, preset fast", "engine, preset exact"
PROCESSES = 2
IN_TWO = {side: f"{side}, two processes of one thread" for side in (ENGINE, FAST_ENGINE, PLAIN)}


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

    def by(self, preset: Algorithm) -> Sides:
        """The same with the settings of a preset."""
        return replace(self, settings=preset.of(self.settings))

    def run_engine(self, items: Sequence[ImageInput]) -> list[Result]:
        """Whole counterfactuals."""
        return [record.result for record in none_failed(self.task(items).run())]

    def run_plain(self, item: ImageInput) -> Result:
        return plain_photo.counterfactual(self.plain, self.by(EXACT).task([item]))


@dataclass
class Timings:
    """seconds: an image, of each run, by who made it. losses: smallest totals, by job id."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    losses: dict[str, dict[str, float]] = field(default_factory=lambda: {ENGINE: {}, PLAIN: {}})

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name].append(seconds)
        say(f"{name}: {seconds:.1f} s an image")

    def take(self, name: str, run: Callable[[], list[Result]]) -> list[Result]:
        """Times a run, and keeps what it reached."""
        began = time.perf_counter()
        results = run()
        self.add(name, (time.perf_counter() - began) / len(results))
        totals = {r.id: min(row["total"] for row in r.history) for r in results}
        self.losses.setdefault(name, {}).update(totals)
        return results

    def per_minute(self, name: str) -> float:
        return 60 / median(self.seconds[name])


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
    warm_up(sides.by(FAST), items[: engine.slots], options.compile)

    two = options.processes and len(items) >= PROCESSES
    in_two = partial(seconds_in_two, options) if two else None
    timings, jobs, agreement = time_rounds(sides, items, options.rounds, in_two)
    occupancy, plan = engine.occupancy, engine.plan
    alone = sides
    if options.compile == "on":
        # Alone it has a batch of its own size: another would be filled up.
        own = load_engine(EMBEDDED, options.memory, 1, compile=options.compile)
        alone = replace(sides, engine=own)
        warm_up(alone, items[:1], options.compile)
    timings.take(SINGLE, lambda: alone.run_engine(items[:1]))
    results = {
        "conditions": conditions() | {"plan": str(plan), "compile": options.compile},
        "jobs": len(items),
        "warm_up_seconds": round(warm_up_seconds, 1),
        **figures(timings),
        "gradient_agreement": agreement,
        "final_loss_ratio": round(loss_ratio(timings.losses), 4),
        "forward_equivalents_per_step": forward_equivalents(engine, jobs[:2]),
        "bf16_gradient_cosine": _rounded(precision_cosines(model, jobs[0], torch.bfloat16)),
        "slot_occupancy": round(occupancy, 3),
        "recompiles": engine.recompiles,
    }
    print(_forms_table(timings), "\n", flush=True)
    file = options.results / "throughput.json"
    write_json(file, results)  # the causes take a while, and may fail
    if options.cause_repeats:
        one_update = [replace(j, settings=replace(j.settings, iterations=1)) for j in jobs]
        ideas = variants(model, classifier, one_update, engine.slots, plan.compiled)
        causes, outside = causes_of(time_in_turns(ideas, options.cause_repeats))
        print(_causes_table(causes), "\n", flush=True)
        results |= {
            "causes": {name: _rounded(asdict(cause)) for name, cause in causes.items()},
            "outside_networks": round(outside, 4),
        }
    finish(file, results)
    return 0


def warm_up(sides: Sides, items: Sequence[ImageInput], compile: str) -> float:
    """Chooses, plans, and where compile is "on" compiles all graphs of the photos; its seconds."""
    if compile == "on":
        once = replace(sides.settings.optimisation, iterations=1)
        settings = replace(sides.settings, null_text_steps=1, optimisation=once)
        return seconds_of(lambda: replace(sides, settings=settings).run_engine(items))
    jobs = text_jobs(sides.engine.model, sides.classifier, 1, steps=2, iterations=1)
    return seconds_of(lambda: run_all(sides.engine, jobs))


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
        results = exact = timings.take(ENGINE, partial(sides.run_engine, share))
        if sides.by(EXACT) != sides:
            exact = timings.take(EXACT_ENGINE, partial(sides.by(EXACT).run_engine, share[:1]))
        if start == 0:
            first, job = [result.job for result in results], exact[0].job
            agreement = gradient_error(
                engine_first_gradients(sides.engine, job), first_gradients(sides.plain, job)
            )
            say(f"first gradients agree to {agreement:.1e}")
        timings.take(FAST_ENGINE, partial(sides.by(FAST).run_engine, share))
        for side in (ENGINE, FAST_ENGINE) if in_two else ():
            # All jobs in every round: half a share would leave slots of a process empty.
            timings.add(IN_TWO[side], in_two(side, items))
        timings.take(PLAIN, lambda item=share[0]: [sides.run_plain(item)])
        if in_two:
            # The last round may be short, and every process needs a photo.
            photos = items[max(0, min(start, len(items) - PROCESSES)) :][:PROCESSES]
            timings.add(IN_TWO[PLAIN], in_two(PLAIN, photos))
    return timings, first, agreement


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
        engine = load_engine(EMBEDDED, slots=1)
        sides = Sides(engine, PlainModel(engine.model), classifier, settings)
        return seconds_of(lambda: [sides.run_plain(item) for item in items])
    # Both plan at once: each may have half of what is free.
    memory = parse_memory(options.memory, torch.device("cpu")) // PROCESSES
    engine = load_engine(EMBEDDED, memory, options.slots, compile=options.compile)
    sides = Sides(engine, None, classifier, settings)
    sides = sides.by(FAST) if side == FAST_ENGINE else sides
    warm_up(sides, items[: engine.slots], options.compile)
    return seconds_of(lambda: sides.run_engine(items))


def loss_ratio(losses: Mapping[str, Mapping[str, float]]) -> float:
    """Of the mean final losses on the plain loop's photos. UserError if the engine's is worse."""
    plain, engine = losses[PLAIN], losses.get(EXACT_ENGINE, losses[ENGINE])
    ratio = mean(engine[id] for id in plain) / mean(plain.values())
    if not ratio <= LOSS_TOLERANCE:
        raise UserError(
            f"the engine's mean final loss is {ratio:.3f} of the plain loop's: "
            "a speed-up for worse results is not reported"
        )
    return ratio


def figures(timings: Timings) -> dict[str, Any]:
    """Images a minute and ratios, those of the engine's faster form."""
    per_minute = {name: timings.per_minute(name) for name in timings.seconds}
    best, fast = (
        max((name for name in (side, IN_TWO[side]) if name in per_minute), key=per_minute.get)
        for side in (ENGINE, FAST_ENGINE)
    )
    ratio = Ratio.of(timings.seconds[PLAIN], timings.seconds[best])
    found = {
        "engine_images_per_min": per_minute[best],
        "plain_images_per_min": per_minute[PLAIN],
        "ratio": ratio.factor,
        "ratio_low": ratio.low,
        "ratio_high": ratio.high,
        "ratio_fast": per_minute[fast] / per_minute[PLAIN],
        "one_process_ratio": per_minute[ENGINE] / per_minute[PLAIN],
        "single_job_ratio": per_minute[SINGLE] / per_minute[PLAIN],
    }
    if IN_TWO[PLAIN] in per_minute:
        found["two_process_ratio"] = per_minute[best] / per_minute[IN_TWO[PLAIN]]
    seconds = {name: [round(s, 2) for s in each] for name, each in timings.seconds.items()}
    return {
        "engine_form": best,
        "fast_form": fast,
        "plain_images": len(timings.seconds[PLAIN]),
        **_rounded(found),
        "seconds_per_image": seconds,
    }


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in figures.items()}


def _forms_table(timings: Timings) -> str:
    plain = timings.per_minute(PLAIN)
    columns = {
        "": lambda name: name,
        "images/min": lambda name: f"{timings.per_minute(name):.2f}",
        "of the plain loop": lambda name: f"{timings.per_minute(name) / plain:.1f}x",
        "seconds an image, by run": lambda name: " ".join(
            f"{s:.1f}" for s in timings.seconds[name]
        ),
    }
    return rows_table(list(timings.seconds), columns)


def _causes_table(causes: Mapping[str, Ratio]) -> str:
    columns = {
        "the engine without": lambda name: name,
        "takes": lambda name: f"{causes[name].factor:.2f}x",
        "range": lambda name: f"{causes[name].low:.2f} to {causes[name].high:.2f}",
    }
    return rows_table(list(causes), columns)


def _settings(options: Namespace) -> CounterfactualSettings:
    """The embedded defaults; ``--iterations`` for a quick look."""
    settings = EMBEDDED_SETTINGS
    if options.iterations is None:
        return settings
    fewer = replace(settings.optimisation, iterations=options.iterations)
    return replace(settings, optimisation=fewer)
