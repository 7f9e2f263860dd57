"""Does the audit find what was planted? Worlds are trained, audited, and held against the truth.

    python -m fastdigin_bench.worlds --planted 20 --clean 5

trains what ``--out`` lacks of the worlds with these seeds (fastdigin.embedded.worlds: the raw data
must be there), audits each on the packaged photos, and prints a row a world, then the figures and,
last, one line of JSON. What ``--out`` holds is not done again, so that a run that was stopped goes
on. Beside the audit's figures stand those of the correlations, its baseline, on the same worlds.
Faithfulness is of the audit's explanations of planted classes that start without the feature.
Seeds from 9000 on were used to tune; the default ones were not.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdigin.audit import Audit, audit
from fastdigin.audit.findings import plain
from fastdigin.commands.audit import with_true_masks
from fastdigin.commands.task import load_engine
from fastdigin.embedded.data import load_world
from fastdigin.embedded.scenes import Shortcut
from fastdigin.embedded.worlds import load_autoencoder, planned, train_world
from fastdigin.engine.engine import Engine
from fastdigin.errors import exits_with_code
from fastdigin.metrics.figures import Figure, figure
from fastdigin.metrics.truth import Discovered, discovery, faithfulness, is_faithful, seen
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import EMBEDDED
from fastdigin.photos import collect
from fastdigin.report.audit_page import write_audit_page
from fastdigin_bench.output import (
    conditions,
    figures_table,
    finish,
    make_folder,
    read_json,
    results_folder,
    say,
    write_json,
)

FOUND = 0.5
ROW = "audit.json"


def run(options: argparse.Namespace) -> None:
    """Trains, audits and prints."""
    out, results = make_folder(options.out, "--out"), results_folder(options.results)
    engine: Engine | None = None
    rows = {}
    for name, shortcuts, seed in planned(options.planted, options.clean, options.seed):
        folder = out / name
        if not (folder / "world.json").is_file():
            train_world(load_world(options.data), load_autoencoder(), shortcuts, folder, seed)
        if "faithful" not in read_json(folder / ROW):
            engine = engine or load_engine(EMBEDDED, slots=8, compile="off")
            audit_world(engine, folder, shortcuts)
        rows[name] = read_json(folder / "world.json") | read_json(folder / ROW)
        say(line_of(name, rows[name]))
    figures = figures_of(rows)
    print("\n".join(line_of(*item) for item in rows.items()))
    print(f"\n{figures_table(figures)}\n")
    # What was looked at and not found stays in the worlds' folders: a megabyte.
    found = {
        name: row | {"candidates": list(_found(row["candidates"]))} for name, row in rows.items()
    }
    finish(
        results / "worlds.json",
        {"conditions": conditions(), "figures": [f.plain() for f in figures], "worlds": found},
    )


def audit_world(engine: Engine, folder: Path, shortcuts: Sequence[Shortcut]) -> None:
    """Writes what the audit of a world found into the world's folder, and its page."""
    classifier = Classifier.load(f"embedded:{folder}")
    photos = with_true_masks(collect(["embedded:photos"]))
    began = time.perf_counter()
    found = audit(engine, classifier, photos)
    row = {
        "candidates": [plain(f) for f in found.candidates],
        "correlations": [plain(c) for c in found.correlations if c.confidence >= FOUND],
        "faithful": [faithful for s in shortcuts for faithful in faithful_of(found, s)],
        "failed": len(found.failed),
        "processor_seconds": round(found.seconds, 1),
        "seconds": round(time.perf_counter() - began, 1),
    }
    write_json(folder / ROW, row)
    write_audit_page(folder, found)


def faithful_of(found: Audit, shortcut: Shortcut) -> list[bool]:
    """Whether each explanation that lacks the planted feature at first brings it, and only it."""
    readers = {n: Classifier.load(f"embedded:{n}") for n in ("judge", "background", "colour")}
    made = found.explanations.get((shortcut.garment, shortcut.attribute), ())
    before, after = (seen(readers, [getattr(x, way) for x in made]) for way in ("before", "after"))
    return [
        is_faithful(*pair, shortcut.attribute, shortcut.feature, more=True)
        for pair in zip(before, after, strict=True)
        if pair[0][shortcut.attribute] != shortcut.feature
    ]


def figures_of(rows: Mapping[str, Mapping[str, Any]]) -> list[Figure]:
    """Of the audit, then of the correlations; times last."""
    figures = []
    for prefix, kept in (("", "candidates"), ("correlations: ", "correlations")):
        worlds = [Discovered(_keys(r["shortcuts"]), _keys(_found(r[kept]))) for r in rows.values()]
        figures += [
            Figure(prefix + f.name, f.value, f.n, f.interval, f.target, f.unit)
            for f in discovery(worlds)
        ]
    faithful = [one for row in rows.values() for one in row["faithful"]]
    seconds = [row["processor_seconds"] for row in rows.values()]
    return [
        faithfulness(faithful), *figures, figure("processor seconds of an audit", seconds)
    ]  # fmt: skip


def line_of(name: str, row: Mapping[str, Any]) -> str:
    """A world in a line: planted with strength, found with effect."""
    planted = ", ".join(
        f"{s['garment']} {s['feature']} {s['strength']:.0%}" for s in row["shortcuts"]
    )
    found = ", ".join(
        f"{f['class']} {f['feature']} {100 * f['effect']:+.0f}" for f in _found(row["candidates"])
    )
    seconds = row["processor_seconds"]
    return f"{name}: planted {planted or 'nothing'}; found {found or 'nothing'}; {seconds} s"


def _found(lines: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [line for line in lines if line["confidence"] >= FOUND]


def _keys(lines: Iterable[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """(class, attribute, feature) of findings or of planted shortcuts."""
    return [(r.get("class") or r["garment"], r["attribute"], r["feature"]) for r in lines]


@exits_with_code
def main(arguments: list[str] | None = None) -> int | None:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--planted", type=int, default=20, metavar="N", help="(default 20)")
    parser.add_argument("--clean", type=int, default=5, metavar="N", help="(default 5)")
    parser.add_argument("--seed", type=int, default=0, help="of the first world (default 0)")
    parser.add_argument("--out", type=Path, default=Path("worlds"), help="(default worlds)")
    parser.add_argument("--results", type=Path, help="where worlds.json goes")
    parser.add_argument("--data", type=Path, help="folder of Fashion-MNIST's four files")
    run(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
