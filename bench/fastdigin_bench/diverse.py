"""How different are the counterfactuals of ``--diverse N``, and is each as good as the first?

    python -m fastdigin_bench.diverse --photos 50 --variants 3

The photos and questions are the first of those that ``bench truth --compare`` reports on; robust
classifier, default settings. The same command continues a run that was stopped. Every figure is of
photos, so that the counterfactuals of one photo do not count as if they were independent.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from fastdigin.commands.options import count
from fastdigin.commands.task import load_engine
from fastdigin.errors import exits_with_code
from fastdigin.metrics import Networks, cases_of, load_extractor, score
from fastdigin.metrics.figures import Figure, figure
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import EMBEDDED
from fastdigin.report.summary import diversities
from fastdigin.results import CounterfactualRecord
from fastdigin.results.pictures import png
from fastdigin.storage import write_atomically
from fastdigin.tasks.counterfactual import Counterfactuals
from fastdigin_bench.output import (
    conditions,
    figures_table,
    finish,
    make_folder,
    results_folder,
)
from fastdigin_bench.pictures import contact_sheet
from fastdigin_bench.truth_compare import halves, questions
from fastdigin_bench.truth_tasks import finished

SLOTS = 8
EXTRACTOR = "embedded:judge"
SHEET_ROWS = 8


def run(options: argparse.Namespace) -> int:
    """Makes what ``--out`` lacks and prints the figures; 1 if a job failed."""
    out, results = make_folder(options.out, "--out"), results_folder(options.results)
    engine = load_engine(EMBEDDED, slots=SLOTS, compile="off")
    task = Counterfactuals(
        engine=engine,
        photos=questions(halves()["reporting"][: options.photos]),
        classifier=Classifier.load("embedded:robust"),
        judge=Classifier.load("embedded:judge"),
        diverse=options.variants,
    )
    records = finished(task, out)
    figures = figures_of(records)
    photos = by_photo(records)
    rows = [[own[0].input_image, *(r.image for r in own)] for own in photos[:SHEET_ROWS]]
    write_atomically(results / "diverse.png", png(contact_sheet(rows, side=96)))
    print(f"{figures_table(figures)}\n")
    finish(
        results / "diverse.json",
        {
            "conditions": conditions() | {"slots": engine.slots, "extractor": EXTRACTOR},
            "photos": len(photos), "variants": options.variants,
            "figures": [one.plain() for one in figures],
        },
    )  # fmt: skip
    return int(len(records) < len(task.requests))


def by_photo(records: Sequence[CounterfactualRecord]) -> list[list[CounterfactualRecord]]:
    """The counterfactuals of each photo, the usual one first."""
    photos: dict[str, list[CounterfactualRecord]] = {}
    for record in records:
        photos.setdefault(record.input, []).append(record)
    return [sorted(own, key=lambda record: record.variant) for own in photos.values()]


def figures_of(records: Sequence[CounterfactualRecord]) -> list[Figure]:
    """Of each variant, of all of a photo together, and how different they are."""
    photos = by_photo(records)
    found = []
    for variant in sorted({record.variant for record in records}):
        own = [record for record in records if record.variant == variant]
        found += [
            figure(f"variant {variant}: flips", [r.flipped for r in own]),
            figure(f"variant {variant}: judge sees the target", [r.judge_agrees for r in own]),
            figure(f"variant {variant}: confidence", [r.target_confidence for r in own]),
            figure(f"variant {variant}: background L1", [r.background_l1 for r in own]),
        ]
    scores = score(cases_of(records), Networks(extractor=load_extractor(EXTRACTOR)))
    return [
        *found,
        figure("all of a photo flip", [_all([r.flipped for r in own]) for own in photos]),
        figure("judge agrees with all", [_all([r.judge_agrees for r in own]) for own in photos]),
        *(one.figure for one in scores if one.figure.name == "diversity"),
        figure("diversity, L1 inside the mask", diversities(records)),
        figure(
            "photo to counterfactual, L1 inside the mask",
            [fmean(r.foreground_l1 for r in own) for own in photos],
        ),
    ]


def _all(values: Sequence[bool | None]) -> bool | None:
    """None where one is not known."""
    return None if None in values else all(values)


@exits_with_code
def main(arguments: list[str] | None = None) -> int | None:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=count, default=50, metavar="N", help="(default 50)")
    parser.add_argument("--variants", type=count, default=3, metavar="N", help="(default 3)")
    parser.add_argument("--out", type=Path, default=Path("diverse"), help="(default diverse)")
    parser.add_argument("--results", type=Path, help="where diverse.json goes")
    return run(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
