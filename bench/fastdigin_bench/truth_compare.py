"""Are other settings as good? ``fastdigin bench truth --compare default,fast,exact``.

Every setting gets the same photos, seeds and intervals, and its seconds by stage. The photos are
480 packaged ones without those of embedded:pairs and of the demo's plans; they are parted in two,
those to report on and those to tune on (``--tuning``), and nobody looks at the former while tuning.

What they are compared with is the setting named exact, or else the first (truth_equal.py).
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

from PIL.Image import Image

from fastdigin import demo, embedded
from fastdigin.engine.engine import Engine
from fastdigin.engine.queue import Search
from fastdigin.models.classifier import Classifier
from fastdigin.photos import ImageInput
from fastdigin.presets.algorithms import load_algorithm
from fastdigin.results import read_records
from fastdigin.results.pictures import png, read_picture
from fastdigin.storage import fingerprint, write_atomically
from fastdigin.tasks.counterfactual import Counterfactuals
from fastdigin.tasks.disagreement import Disagreements
from fastdigin.tasks.neuron_counterfactual import NeuronCounterfactuals
from fastdigin.tasks.neurons import NeuronVisualisations
from fastdigin.tasks.task import Preparation, Task
from fastdigin_bench import truth_tasks
from fastdigin_bench.output import finish, read_json, rows_table, write_json
from fastdigin_bench.pictures import contact_sheet
from fastdigin_bench.plots import Panel, plot
from fastdigin_bench.truth_equal import COUNTERFACTUAL, Rows, compared
from fastdigin_bench.truth_rows import L1_RATIO

PAIRS, PLANS, DISAGREEMENTS, NEURONS = 240, 200, 48, 20
SHEET_ROWS = 12
STAGES = {"preparation": Preparation, "search": Search}
PARTS = (COUNTERFACTUAL, "neuron-counterfactual", "disagreement", "neurons")


def run(options: Namespace, engine: Engine, place: Mapping[str, Any]) -> int:
    """Runs what the folder lacks of every setting, and compares; returns 1 if a job failed."""
    names = list(dict.fromkeys(options.compare.split(",")))
    algorithms = {name: None if name == "default" else load_algorithm(name) for name in names}
    baseline = "exact" if "exact" in names else names[0]
    half = "tuning" if options.tuning else "reporting"
    parts = [part for part in PARTS if part in options.only]
    rows: dict[str, dict[str, Rows]] = {name: {} for name in names}
    seconds: dict[str, dict[str, Any]] = {name: {} for name in names}
    folders: dict[str, Path] = {}
    failed = 0
    for part in parts:  # the settings in turn, so that a run that is stopped compares something
        for name in names:
            task = make_task(part, engine, half, options.jobs)
            if algorithms[name] is not None:
                task = replace(task, settings=algorithms[name].of(task.settings, task.name))
            # Other settings of the same name make other results.
            key = fingerprint(*map(str, sorted(task.run_settings.items())))
            out = options.out / half / part / f"{Path(name).stem}-{key}"
            out.mkdir(parents=True, exist_ok=True)
            with timed_stages(out):
                rows[name][part] = truth_tasks.measure(task, out)
            failed += len(task.requests) - len(rows[name][part])
            seconds[name][part] = per_image(out)
            if part == COUNTERFACTUAL:
                folders[name] = out
    settings = [
        {"name": name, **compared(rows[baseline], rows[name], half), "seconds": seconds[name]}
        for name in names
    ]
    print(rows_table(settings, COLUMNS), "\n", flush=True)
    for one in settings:
        print(*(f"{one['name']}: {reason}\n" for reason in one["why"]), sep="", end="")
    if folders:
        draw(settings, options.results / "truth-compare.png")
        write_atomically(options.results / "truth-compare-pictures.png", png(pictures(folders)))
    results = {"conditions": place, "photos": half, "baseline": baseline, "settings": settings}
    finish(options.results / "truth-compare.json", results)
    return int(failed > 0)


def halves() -> dict[str, list[embedded.Photo]]:
    """Photos to report on and to tune on, the garments in turn: every beginning is a good mix."""
    plans = islice(demo.neuron_counterfactual_plans(), truth_tasks.COUNTS["neuron-counterfactual"])
    known = {pair.photo.id for pair in embedded.pairs()} | {item.id for item, _, _ in plans}
    free = [photo for photo in embedded.photos() if photo.id not in known]
    columns = [[p for p in free if p.garment == garment] for garment in embedded.GARMENTS]
    each = PAIRS // len(columns)
    parts = {
        "reporting": [column[:each] for column in columns],
        "tuning": [column[each:] for column in columns],
    }
    return {
        name: [column[n] for n in range(each) for column in chosen if n < len(column)]
        for name, chosen in parts.items()
    }


def questions(photos: Sequence[embedded.Photo]) -> list[ImageInput]:
    """A counterfactual question for each photo, its garment's targets of embedded:pairs in turn."""
    targets: dict[str, list[str]] = {}
    for pair in embedded.pairs():
        known = targets.setdefault(pair.source, [])
        known += [pair.target] * (pair.target not in known)
    asked = dict.fromkeys(targets, 0)
    found = []
    for photo in photos:
        choice = targets[photo.garment]
        target = choice[asked[photo.garment] % len(choice)]
        asked[photo.garment] += 1
        found.append(ImageInput(photo.id, photo.path, photo.prompt, photo.garment, target))
    return found


def make_task(part: str, engine: Engine, half: str, limit: int | None) -> Task:
    """As ``truth_tasks.make_task``, with the photos, seeds and neurons of one half."""
    photos, number = halves()[half], ["reporting", "tuning"].index(half) + 1
    load = {n: f"embedded:{n}" for n in ("robust", "spurious", "judge", "background")}
    load = {n: Classifier.load(name) for n, name in load.items()}

    def first(items, most: int) -> list:
        return list(islice(items, most if limit is None else min(most, limit)))

    if part == COUNTERFACTUAL:
        return Counterfactuals(
            engine=engine, photos=first(questions(photos), PAIRS), classifier=load["robust"],
            judge=load["judge"],
        )  # fmt: skip
    if part == "disagreement":
        classes = list(embedded.PLANTED)
        seeds = -(-len(first(range(DISAGREEMENTS), DISAGREEMENTS)) // len(classes))
        return Disagreements(
            engine=engine, f=load["robust"], g=load["spurious"], classes=classes, seeds=seeds,
            seed=1000 * number,
        )  # fmt: skip
    dataset = [read_picture(photo.path) for photo in embedded.photos()]
    if part == "neurons":
        known = demo.planted_neurons_first(load["spurious"])[NEURONS * number :]
        return NeuronVisualisations(
            engine=engine, classifier=load["spurious"], neurons=first(known, NEURONS),
            words=embedded.words(), dataset=dataset,
        )  # fmt: skip
    ids = {photo.id for photo in photos}
    plans = first((p for p in demo.neuron_counterfactual_plans() if p[0].id in ids), PLANS)
    items, neurons, directions = (list(column) for column in zip(*plans, strict=True))
    return NeuronCounterfactuals(
        engine=engine, photos=items, classifier=load["spurious"], neuron=neurons,
        direction=directions, dataset=dataset, backgrounds=load["background"],
    )  # fmt: skip


@contextmanager
def timed_stages(out: Path) -> Iterator[None]:
    """Adds the seconds of what runs inside, by stage, to a file in ``out``; also where it stops."""
    found = dict.fromkeys((*STAGES, "all"), 0.0)
    before = done(out)

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            found[name] += time.perf_counter() - began

    with ExitStack() as stack:
        for name, stage in STAGES.items():
            stack.enter_context(patch.object(stage, "run", timed(name)(stage.run)))
        try:
            with timed("all"):
                yield
        finally:
            images = done(out) - before
            if images:  # reading alone is nobody's time
                kept = read_json(out / "seconds.json")
                found |= {"images": images}
                write_json(out / "seconds.json", {k: kept.get(k, 0) + v for k, v in found.items()})


def done(out: Path) -> int:
    """How many images a folder holds."""
    return len({record.id for record in read_records(out) if record.status == "done"})


def per_image(out: Path) -> dict[str, float]:
    """Seconds an image by stage; what is neither preparation nor search is optimisation."""
    kept = read_json(out / "seconds.json")
    if not kept:
        return {}
    each = {name: kept[name] / kept["images"] for name in (*STAGES, "all")}
    each["optimisation"] = each["all"] - sum(each[name] for name in STAGES)
    return {name: round(value, 2) for name, value in each.items()}


def value(setting: Mapping[str, Any], name: str, part: str = COUNTERFACTUAL) -> float | None:
    """A figure of a setting; None where it was not measured."""
    found = [f["value"] for f in setting["figures"].get(part, ()) if f["name"] == name]
    return found[0] if found else None


def draw(settings: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The Pareto plot: seconds an image of a counterfactual against the judge, and against L1."""
    panels = []
    for name in ("judge sees the target", L1_RATIO["counterfactual"]):
        points = {
            one["name"]: [(one["seconds"][COUNTERFACTUAL]["all"], value(one, name))]
            for one in settings
            if one["seconds"].get(COUNTERFACTUAL) and value(one, name) is not None
        }
        panels.append(Panel(name, "seconds an image", name, points))
    plot(path, panels)


def pictures(folders: Mapping[str, Path]) -> Image:
    """Side by side: the photo, and what each setting makes of it. folders: of the settings."""
    by_name = {
        name: {record.id: record for record in read_records(folder) if record.status == "done"}
        for name, folder in folders.items()
    }
    ids = list(next(iter(by_name.values())))
    ids = [id for id in ids if all(id in records for records in by_name.values())][:SHEET_ROWS]
    rows = [
        [next(iter(by_name.values()))[id].input_image, *(r[id].image for r in by_name.values())]
        for id in ids
    ]
    return contact_sheet(rows, [], ["photo", *(Path(name).stem for name in by_name)], side=96)


def _share(name: str, part: str = COUNTERFACTUAL) -> Callable[[Mapping[str, Any]], str]:
    def cell(setting: Mapping[str, Any]) -> str:
        found = value(setting, name, part)
        return "" if found is None else f"{found:.3f}"

    return cell


COLUMNS = {
    "settings": "name",
    "equal": lambda one: "yes" if one["equal"] else "no",
    "s an image": lambda one: f"{one['seconds'].get(COUNTERFACTUAL, {}).get('all', 0):.1f}",
    "flips": _share("flips to the target"),
    "judge": _share("judge sees the target"),
    "confidence": _share("target confidence after"),
    "L1": _share(L1_RATIO["counterfactual"]),
    "appears": _share("raised: planted background appears", "neuron-counterfactual"),
    "vanishes": _share("lowered: planted background vanishes", "neuron-counterfactual"),
    "f and g part": _share("f at least 0.9, g at most 0.1", "disagreement"),
    "neurons": _share("above each of the photos", "neurons"),
}
