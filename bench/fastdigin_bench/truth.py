"""How good are the explanations? The embedded model and the four tasks against planted truth.

    fastdigin bench truth

runs the parts one after the other and prints a table of each; the same command continues a run
that was stopped. Every figure comes with its n, its 95% interval and its target, where it has one.
The results so far are in truth.json after every part.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fastdigin import embedded
from fastdigin.commands.task_options import load_engine
from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import EMBEDDED
from fastdigin.storage import fingerprint
from fastdigin_bench import truth_tasks, truth_world
from fastdigin_bench.figures import figures_table
from fastdigin_bench.output import (
    conditions,
    make_folder,
    print_last_line,
    read_json,
    results_folder,
    write_json,
)
from fastdigin_bench.truth_part import Measured, Setup

PARTS: dict[str, Callable[[Setup, Path], Measured]] = {
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
    file = results_folder(options.results) / "truth.json"
    make_folder(options.out, "--out")
    world = {"embedded": embedded_fingerprint()}
    check_same_world(options.out, world)
    setup = load(options.jobs)
    place = conditions() | world | {"slots": setup.engine.slots, "jobs": options.jobs}
    parts = kept_parts(read_json(file), place)
    failed = 0
    for name in PARTS:
        if name not in options.only:
            continue
        measured = PARTS[name](setup, options.out / name)
        failed += measured.failed
        parts[name] = measured.plain()
        results = {"conditions": place, "parts": {n: parts[n] for n in PARTS if n in parts}}
        write_json(file, results)
        troubles = f", {measured.failed} failed" if measured.failed else ""
        print(f"{name}: {measured.jobs} jobs{troubles}\n")
        print(f"{figures_table(measured.figures)}\n", flush=True)
    print_last_line(results)
    return 1 if failed else 0


def load(limit: int | None) -> Setup:
    """The embedded model and all embedded classifiers."""
    engine = load_engine(EMBEDDED, slots=SLOTS, compile="off")
    names = embedded.classifier_names()
    device = engine.model.device
    return Setup(engine, {n: Classifier.load(f"embedded:{n}").to(device) for n in names}, limit)


def embedded_fingerprint() -> str:
    """Changes with any weight, photo or pair of the embedded world."""
    root = embedded.model_folder().parent
    files = sorted(f for f in root.rglob("*") if f.suffix in (".json", ".png", ".safetensors"))
    parts = ((str(file.relative_to(root)), file.read_bytes()) for file in files)
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


def kept_parts(before: Mapping[str, Any], place: Mapping[str, Any]) -> dict[str, Any]:
    """The parts in an earlier truth.json, if it was measured under the same conditions."""
    return dict(before["parts"]) if before.get("conditions") == place else {}
