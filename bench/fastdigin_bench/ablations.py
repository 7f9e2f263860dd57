"""What does each part of a counterfactual do? One thing is changed at a time, and all else stays.

    python -m fastdigin_bench.ablations --photos 24

The photos, questions and scores are those of ``bench methods`` (the first of the photos to report
on); the settings are the defaults but for the one change that a row names. The pictures stay in
``--out``, so that the same command continues a run that was stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastdigin.commands.options import count
from fastdigin.commands.task import load_engine
from fastdigin.errors import exits_with_code
from fastdigin.metrics.truth import seen
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import EMBEDDED
from fastdigin.presets import Algorithm
from fastdigin.results.pictures import png
from fastdigin.storage import write_atomically
from fastdigin.tasks.counterfactual import EMBEDDED as SETTINGS
from fastdigin_bench.methods import SLOTS, chosen, load_readers, report, scores
from fastdigin_bench.methods.asked import photos_asked
from fastdigin_bench.methods.by_task import ByCounterfactuals
from fastdigin_bench.methods.made import made
from fastdigin_bench.methods.scores import Figures, Rows
from fastdigin_bench.output import (
    conditions,
    finish,
    make_folder,
    results_folder,
    rows_table,
    say,
    write_json,
)

PAIRED = ("flip_rate", "judge", "kept", "confidence", "background_l1")
"""Scores that are compared with the default's, photo by photo."""
SHOWN = (*PAIRED, "seconds")  # a batch of photos has one time, so that photos are no sample of it


@dataclass(frozen=True)
class Ablation:
    """One change. settings: fields as in presets of the algorithm. classifier: which is explained.

    The first of ABLATIONS changes nothing.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    classifier: str = "robust"

    @property
    def method(self) -> ByCounterfactuals:
        changed = Algorithm(self.name, "", {"counterfactual": self.settings})
        return ByCounterfactuals(self.name, changed.of)


def _variables(*names: str) -> dict[str, Any]:
    return {"optimisation.variables": names}


ABLATIONS = (
    Ablation("default"),
    Ablation("optimised: latents", _variables("latents")),
    Ablation("optimised: conditioning", _variables("conditioning")),
    Ablation("optimised: null text", _variables("null_text")),
    Ablation("optimised: nothing", {"optimisation.iterations": 0}),
    Ablation("no injection", {"injection_fractions": (0.0,)}),
    Ablation(
        "no mask",
        {
            "regularisers": tuple(replace(r, region="all") for r in SETTINGS.regularisers),
            "blending_fractions": (0.0,),
        },
    ),
    Ablation("no regularisers", {"regularisers": ()}),
    # A crop of the whole image, whatever is drawn: the plain image.
    Ablation("no crops", {"cutouts.count": 1, "cutouts.power": 1e-9, "cutouts.noise": 0.0}),
    Ablation("4 crops", {"cutouts.count": 4}),
    Ablation("64 crops", {"cutouts.count": 64}),
    Ablation("K = 1", {"optimisation.last_steps": 1}),
    Ablation("K = 6", {"optimisation.last_steps": 6}),
    Ablation("one schedule", {"injection_fractions": (0.3,), "blending_fractions": (0.0,)}),
    Ablation("classifier: clean", classifier="clean"),
    Ablation("classifier: spurious", classifier="spurious"),
)


def run(options: argparse.Namespace) -> None:
    """Makes what ``--out`` lacks, and prints the table."""
    out, results = make_folder(options.out, "--out"), results_folder(options.results)
    engine = load_engine(EMBEDDED, slots=SLOTS, compile="off")
    readers = load_readers()
    file = results / "ablations.json"
    content: dict[str, Any] = {
        "conditions": conditions() | {
            "slots": engine.slots, "seconds": "of the process's processors, per image",
        }
    }  # fmt: skip
    rows: dict[str, Rows] = {}
    images = {}
    only = options.only and ("default", *options.only)
    for one in chosen(ABLATIONS, only, "ablation"):
        classifier = Classifier.load(f"embedded:{one.classifier}")
        asked = photos_asked(classifier, "reporting", options.photos)
        photos = images.setdefault("photo", [each.image for each in asked])
        say(f"{one.name}: {len(asked)} photos")
        folder = make_folder(out / one.classifier, "--out")
        images[one.name], seconds = made(folder, one.method, engine, classifier, asked)
        shown = [seen(readers, shown) for shown in (photos, images[one.name])]
        rows[one.name] = scores.rows_of(classifier, asked, images[one.name], *shown, seconds)
        content["ablations"] = compared(rows)
        write_json(file, content)
    write_atomically(file.with_suffix(".png"), png(report.sheet(images)))
    costs = results / "ablations-costs.png"
    report.draw(content["ablations"], costs, "confidence", "confidence in the target")
    print(text(rows), "\n", flush=True)
    finish(file, content)


def compared(rows: Mapping[str, Rows]) -> list[dict[str, Any]]:
    """JSON values of each, with its differences to the first one, photo by photo."""
    first = next(iter(rows.values()))
    changes = {one.name: one for one in ABLATIONS}
    return [
        scores.plain(name, scores.figures(own))
        | {
            "settings": {k: str(v) for k, v in changes[name].settings.items()},
            "classifier": changes[name].classifier,
            "minus_default": {key: report.paired(own, first, key) for key in PAIRED},
        }
        for name, own in rows.items()
    ]


def text(rows: Mapping[str, Rows]) -> str:
    """The table, in bold what differs from the first row, photo by photo."""
    first = next(iter(rows.values()))
    found: dict[str, Figures] = {name: scores.figures(own) for name, own in rows.items()}

    def cell(key: str):
        return lambda name: report.cell(
            found[name][key], key in PAIRED and differs(report.paired(rows[name], first, key))
        )

    columns = {"changed": str} | {scores.SCORES[key][0]: cell(key) for key in SHOWN}
    return (
        f"{rows_table(list(rows), columns)}\n\nn = {len(first)}; 95% intervals in brackets; in "
        "bold what differs from the default by a paired interval that leaves out 0."
    )


def differs(paired: Mapping[str, Any]) -> bool:
    """Whether the interval of a difference leaves out 0."""
    low, high = paired["interval"] or (0, 0)
    return low > 0 or high < 0


@exits_with_code
def main(arguments: list[str] | None = None) -> int | None:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=count, default=24, metavar="N", help="(default 24)")
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="as in the table")
    parser.add_argument("--out", type=Path, default=Path("ablations"), help="(default ablations)")
    parser.add_argument("--results", type=Path, help="where ablations.json goes")
    run(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
