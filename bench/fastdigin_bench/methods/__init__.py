"""``fastdigin bench methods``: which method of explanation is best, at what cost?

Every method gets the same held-out photos, the same questions and the same classifier, eight photos
at a time, and its pictures get the same scores. The pictures stay in ``--out``, so the same command
continues a run that was stopped, and scores are read off the pictures that are there. Settings of
the baselines were chosen on the photos to tune on (bench/NOTES.md).
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastdigin import embedded
from fastdigin.commands.task import load_engine
from fastdigin.engine.engine import Engine
from fastdigin.errors import UserError
from fastdigin.metrics.extractors import load_extractor
from fastdigin.metrics.truth import seen
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import EMBEDDED
from fastdigin.results.pictures import png
from fastdigin.storage import write_atomically
from fastdigin_bench.methods import discovery, report, scores
from fastdigin_bench.methods.asked import Method, neurons_asked, other_photos, photos_asked
from fastdigin_bench.methods.by_task import (
    DEFAULT,
    FAST,
    PROMPT_TO_PROMPT,
    PUBLISHED,
    ByNeuronCounterfactuals,
)
from fastdigin_bench.methods.fastdime import FastDiME
from fastdigin_bench.methods.feature_attack import FeatureAttack
from fastdigin_bench.methods.imagenet import imagenet_garments
from fastdigin_bench.methods.ldce import LDCE
from fastdigin_bench.methods.made import BATCH, made
from fastdigin_bench.methods.pixel_pgd import PixelPGD
from fastdigin_bench.methods.prompt_swap import PromptSwap
from fastdigin_bench.methods.rcsb import RCSB
from fastdigin_bench.output import conditions, finish, make_folder, say, write_json

Named = TypeVar("Named")
METHODS: tuple[Method, ...] = (
    DEFAULT, FAST, PUBLISHED, PROMPT_TO_PROMPT,
    PromptSwap(), PixelPGD(), FastDiME(), LDCE(), RCSB(),
)  # fmt: skip
NO_EDIT = PromptSwap(strength=0.0, name="autoencoder alone")
NEURON_METHODS: tuple[Method, ...] = (ByNeuronCounterfactuals(), FeatureAttack())
MOST = {PUBLISHED.name: 50}
"""A method above eight seconds an image is asked about the first photos alone."""
QUICK = 8  # photos, and neurons
SLOTS = 8
EXTRACTOR = "embedded:judge"


def run(options: Namespace) -> int:
    """Makes what ``--out`` lacks, scores it, and prints the tables; 0."""
    count, neurons = (options.photos, options.neurons)
    if options.quick:
        count, neurons = min(count, QUICK), min(neurons, QUICK)
    explained = Path(options.classifier).name
    methods = chosen(METHODS, options.only, "method")
    planted = discovery.planted_in(options.classifier)
    out = make_folder(options.out / explained / options.half, "--out")
    engine = load_engine(EMBEDDED, slots=SLOTS, compile="off")
    classifier = classifier_named(options.classifier)
    readers = load_readers()
    asked = photos_asked(classifier, options.half, count)
    before = seen(readers, [one.image for one in asked])
    extractor = load_extractor(EXTRACTOR)
    others = extractor.features(torch.stack(other_photos(options.half)))
    parts = [options.quick and "quick", explained, options.half]
    usual = ("robust", "reporting")
    name = "-".join(["methods", *(part for part in parts if part and part not in usual)])
    file = options.results / f"{name}.json"
    results: dict[str, Any] = {
        "conditions": conditions() | {
            "classifier": classifier.name, "photos": options.half, "slots": engine.slots,
            "extractor": EXTRACTOR, "seconds": "of the process's processors, per image",
        }
    }  # fmt: skip
    for end in range(BATCH, count + BATCH, BATCH):  # a run that is stopped has compared something
        part, rows, found, named = asked[:end], {}, {}, {}
        images = {"photo": [one.image for one in part]}
        for method in (NO_EDIT, *methods):
            its = part[: MOST.get(method.name)]
            say(f"{method.name}: {len(its)} of {count} photos")
            images[method.name], seconds = made(out, method, engine, classifier, its)
            after = seen(readers, images[method.name])
            rows[method.name] = scores.rows_of(
                classifier, its, images[method.name], before[: len(its)], after, seconds
            )
            named[method.name] = discovery.named(its, before, after)
            found[method.name] = scores.figures(rows[method.name]) | scores.realism(
                extractor, images[method.name], others
            )
        results |= report.compared(found, rows, named, planted, NO_EDIT.name, DEFAULT.name)
        write_json(file, results)
    write_atomically(file.with_suffix(".png"), png(report.sheet(images)))
    front = options.results / f"{name}-front.png"
    report.draw(results["methods"], front, "judge", "judge sees the target")
    print(report.text(found, scores.SCORES, NO_EDIT.name, DEFAULT.name))
    print(discovery.text(named, planted), flush=True)
    found, images = neuron_part(engine, options.half, neurons, out, readers)
    results["neurons"] = [scores.plain(name, figures) for name, figures in found.items()]
    write_atomically(options.results / f"{name}-neurons.png", png(report.sheet(images)))
    print(report.text(found, scores.NEURON_SCORES), flush=True)
    finish(file, results)
    return 0


def chosen(known: Sequence[Named], names: Collection[str], kind: str) -> list[Named]:
    """Those of these names, or all. UserError for a name that there is not. kind: of thing."""
    all_names = [one.name for one in known]
    for name in names:
        if name not in all_names:
            raise UserError(f"--only {name!r} is no {kind}: name some of {', '.join(all_names)}")
    return [one for one in known if not names or one.name in names]


def load_readers() -> dict[str, Classifier]:
    """What reads the pictures: attribute -> a classifier whose classes are its features."""
    return {n: Classifier.load(f"embedded:{n}") for n in ("judge", "background", "colour")}


def classifier_named(name: str) -> Classifier:
    """A packaged one, the one of ImageNet, or the one in the folder of a world."""
    return imagenet_garments() if name == "imagenet" else Classifier.load(f"embedded:{name}")


def neuron_part(
    engine: Engine, half: str, count: int, out: Path, readers: Mapping[str, Classifier]
) -> tuple[dict[str, scores.Figures], dict[str, list[Tensor]]]:
    """Figures and images of the methods for neurons, of the spurious classifier's planted ones."""
    spurious = Classifier.load("embedded:spurious")
    asked = neurons_asked(half, count)
    planted = {n: place for place, found in embedded.planted_neurons().items() for n in found}
    found, images = {}, {"photo": [one.image for one in asked]}
    for method in NEURON_METHODS:
        say(f"{method.name}: {len(asked)} photos and neurons")
        images[method.name], seconds = made(
            make_folder(out / "neurons", "--out"), method, engine, spurious, asked
        )
        found[method.name] = scores.figures(
            scores.neuron_rows(spurious, readers, planted, asked, images[method.name], seconds)
        )
    return found, images
