"""How good are the explanations? The embedded model and the four tasks against planted truth.

    fastdigin bench truth

runs the parts one after the other and prints a table of each; the same command continues a run
that was stopped. Every figure comes with its n, its 95% interval and its target, where it has one.
With ``--compare`` it asks whether other settings are as good (truth_compare.py).
The results so far are in truth.json after every part.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from fastdigin import embedded
from fastdigin.commands.task import load_engine
from fastdigin.errors import UserError
from fastdigin.metrics.figures import figures_of
from fastdigin.models.diffusion import EMBEDDED
from fastdigin.storage import fingerprint
from fastdigin_bench import truth_compare, truth_tasks, truth_world
from fastdigin_bench.command import TRUTH_PARTS
from fastdigin_bench.output import (
    conditions,
    figures_table,
    finish,
    make_folder,
    read_json,
    write_json,
)
from fastdigin_bench.truth_rows import TARGETS

SLOTS = 8  # neither this nor compiling is left to the machine: both change the results' last bits
_MARK = "embedded.json"


def run(options: Namespace) -> int:
    """Measures the parts in ``options.only`` and prints their tables; returns 1 if a job failed.

    The figures are kept after each part, beside those that other parts got under the same
    conditions. Raises UserError for folders that cannot be written or hold results of another
    world.
    """
    make_folder(options.out, "--out")
    world = {"embedded": fingerprint_of(embedded.model_folder().parent)}
    check_same_world(options.out, world)
    engine = load_engine(EMBEDDED, slots=SLOTS, compile="off")
    place = conditions() | world | {"slots": engine.slots, "jobs": options.jobs}
    if options.compare:
        return truth_compare.run(options, engine, place)
    file = options.results / "truth.json"
    before = read_json(file)
    found = dict(before["parts"]) if before.get("conditions") == place else {}
    any_failed = False
    for name in (name for name in TRUTH_PARTS if name in options.only):
        if name == "world":
            jobs, figures = truth_world.measure(engine, options.jobs, options.out / name)
            failed = 0
        else:
            task = truth_tasks.make_task(name, engine, options.jobs)
            rows = truth_tasks.measure(task, options.out / name)
            jobs, figures = len(task.requests), figures_of(list(rows.values()), TARGETS[name])
            failed = jobs - len(rows)
        plain = [figure.plain() for figure in figures]
        found[name] = {"jobs": jobs, "failed": failed, "figures": plain}
        results = {"conditions": place, "parts": {n: found[n] for n in TRUTH_PARTS if n in found}}
        write_json(file, results)
        troubles = f", {failed} failed" if failed else ""
        print(f"{name}: {jobs} jobs{troubles}\n")
        print(f"{figures_table(figures)}\n", flush=True)
        any_failed |= failed > 0
    finish(file, results)
    return int(any_failed)


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
