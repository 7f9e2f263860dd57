"""How good are the explanations? The embedded model and the four tasks against planted truth.

    fastdigin bench truth

runs the parts one after the other and prints a table of each; the same command continues a run
that was stopped. Every figure comes with its n, its 95% interval and its target, where it has one.
The results so far are in truth.json after every part.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fastdigin import embedded
from fastdigin.commands.task import load_engine
from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import EMBEDDED
from fastdigin.storage import fingerprint
from fastdigin_bench import truth_tasks, truth_world
from fastdigin_bench.figures import figures_table
from fastdigin_bench.output import conditions, finish, make_folder, read_json, write_json
from fastdigin_bench.truth_part import Part, Setup

PARTS: dict[str, Part] = {
    "world": truth_world.measure,
    "counterfactual-clean": partial(truth_tasks.counterfactuals, "clean"),
    "counterfactual-robust": partial(truth_tasks.counterfactuals, "robust"),
    "disagreement": truth_tasks.disagreements,
    "neurons": truth_tasks.neurons,
    "neuron-counterfactual": truth_tasks.neuron_counterfactuals,
}
SLOTS = 8  # neither this nor compiling is left to the machine: both change the results' last bits
_MARK = "embedded.json"


def run(options: Namespace) -> int:
    """Measures the parts in ``options.only``; returns 1 if a job failed.

    Raises UserError for folders that cannot be written or hold results of another world.
    """
    make_folder(options.out, "--out")
    world = {"embedded": fingerprint_of(embedded.model_folder().parent)}
    check_same_world(options.out, world)
    setup = load(options.jobs)
    place = conditions() | world | {"slots": setup.engine.slots, "jobs": options.jobs}
    chosen = {name: part for name, part in PARTS.items() if name in options.only}
    return measure(chosen, setup, options.out, options.results / "truth.json", place)


def measure(
    parts: Mapping[str, Part], setup: Setup, out: Path, file: Path, place: Mapping[str, Any]
) -> int:
    """Measures parts, each below ``out``, and prints their tables; returns 1 if a job failed.

    file: keeps the figures after each part, beside those that other parts got under the same
    conditions. place: these.
    """
    before = read_json(file)
    found = dict(before["parts"]) if before.get("conditions") == place else {}
    failed = 0
    for name, part in parts.items():
        measured = part(setup, out / name)
        failed += measured.failed
        found[name] = measured.plain()
        results = {"conditions": place, "parts": {n: found[n] for n in PARTS if n in found}}
        write_json(file, results)
        troubles = f", {measured.failed} failed" if measured.failed else ""
        print(f"{name}: {measured.jobs} jobs{troubles}\n")
        print(f"{figures_table(measured.figures)}\n", flush=True)
    finish(file, results)
    return 1 if failed else 0


def load(limit: int | None) -> Setup:
    """The embedded model and all embedded classifiers."""
    engine = load_engine(EMBEDDED, slots=SLOTS, compile="off")
    names = embedded.classifier_names()
    device = engine.model.device
    return Setup(engine, {n: Classifier.load(f"embedded:{n}").to(device) for n in names}, limit)


def fingerprint_of(world: Path) -> str:
    """Changes with any weight, photo or pair in the folder of the embedded world."""
    files = sorted(f for f in world.rglob("*") if f.suffix in (".json", ".png", ".safetensors"))
    parts = ((str(file.relative_to(world)), file.read_bytes()) for file in files)
    return fingerprint(*(part for pair in parts for part in pair))


def check_same_world(out: Path, world: Mapping[str, str]) -> None:
    """Marks a new folder; raises UserError for one with results of other weights or photos."""
    mark = read_json(out / _MARK)
    if mark and mark != world:
        raise UserError(
            f"--out '{out}' holds results of another embedded world (its weights or photos have "
            "changed since): name another --out"
        )
    write_json(out / _MARK, world)
