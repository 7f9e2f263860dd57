"""fastdigin score: how good the explanations in a folder are, whatever method made them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastdigin.commands.classifier_options import CLASSIFIER_HELP, add_class_names, load_classifier
from fastdigin.commands.common_options import add_device, chosen_device
from fastdigin.commands.options import comma_list, named, path

if TYPE_CHECKING:  # torch takes seconds, and the parser does without it
    from fastdigin.metrics import Networks, Score

LAYOUTS = ("fastdigin", "ace")
EXTRACTOR = "embedded:judge"


def add_options(parser: argparse.ArgumentParser, command: str) -> None:
    """The folder, its layout, and what looks at the pictures."""
    parser.add_argument("folder", type=path, metavar="DIR", help="the --out of a run")
    parser.add_argument(
        "--layout", choices=LAYOUTS, default="fastdigin",
        help="ace: DIR holds Original/ and Results/EXPERIMENT/CC/CCF/CF, as the scripts of ACE and "
        "DiME have it",
    )  # fmt: skip
    parser.add_argument(
        "--experiment", type=named, metavar="NAME",
        help="below Results/, for --layout ace and --export-ace (default: the only one; the task)",
    )  # fmt: skip
    parser.add_argument(
        "--classifier", metavar="C",
        help="the explained one: gives COUT, and flips and confidences anew (default: recorded); "
        + CLASSIFIER_HELP,
    )  # fmt: skip
    parser.add_argument("--judge", metavar="C", help="independent (default: as recorded)")
    parser.add_argument(
        "--extractor", default=EXTRACTOR, type=named, metavar="E",
        help="for FID, KID, sFID, S3 and diversity: inception, inception:FILE, or as --classifier "
        f"(default {EXTRACTOR})",
    )  # fmt: skip
    parser.add_argument("--faces", type=named, metavar="E", help="for FVA and FS, likewise")
    parser.add_argument(
        "--attributes", type=comma_list, metavar="C,C",
        help="classifiers whose classes are attributes, for MNAC and CD",
    )  # fmt: skip
    parser.add_argument(
        "--query", metavar="NAME", help="the attribute that shall change, for CD; others should not"
    )
    parser.add_argument("--lpips", choices=("alex", "vgg"), help="the backbone of LPIPS")
    parser.add_argument(
        "--export-ace", type=path, metavar="OUT",
        help="also write the explanations to OUT in the layout of the ACE scripts (several tasks: "
        "each to OUT/TASK)",
    )  # fmt: skip
    add_device(parser)
    add_class_names(parser)


def run(options: argparse.Namespace) -> int:
    """Prints a table, or a line of JSON, of each task in the folder."""
    from tqdm import tqdm

    from fastdigin.metrics import read_ace, read_cases, score, write_ace
    from fastdigin.report.console import print_text

    if options.layout == "ace":
        found = {"ace": read_ace(options.folder, options.experiment)}
    else:
        found = read_cases(options.folder)
    networks = _networks(options)
    for task, cases in found.items():
        if options.export_ace is not None:
            # Photos are numbered: those of several tasks would take each other's place.
            place = options.export_ace / task if len(found) > 1 else options.export_ace
            write_ace(cases, place, options.experiment or task)
        with tqdm(total=len(cases), desc=task, unit="image", file=sys.stderr) as bar:
            scores = score(cases, networks, query=options.query, on_progress=bar.update)
        if options.json:
            plain = [one.plain() for one in scores]
            print(json.dumps({"task": task, "n": len(cases), "figures": plain}))
        else:
            print_text(f"{task}: {len(cases)} explanations\n\n{_table(scores)}\n")
    return 0


def _networks(options: argparse.Namespace) -> Networks:
    from fastdigin.metrics import Networks, load_extractor
    from fastdigin.objectives import load_lpips

    device = chosen_device(options)
    classifier, judge = (
        load_classifier(spec, options) if spec else None
        for spec in (options.classifier, options.judge)
    )
    return Networks(
        classifier=classifier,
        judge=judge,
        extractor=load_extractor(options.extractor, device),
        faces=load_extractor(options.faces, device) if options.faces else None,
        attributes=[load_classifier(spec, options) for spec in options.attributes or ()],
        lpips=load_lpips(options.lpips).to(device) if options.lpips else None,
    )


def _table(scores: Sequence[Score]) -> str:
    from fastdigin.report.console import table

    rows = [[one.figure.name, one.figure.show(), one.cohort, one.network or ""] for one in scores]
    return table(["figure", "value", "of", "by"], rows)
