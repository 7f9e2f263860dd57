"""The parts of ``fastdigin bench truth`` that run a task: its jobs, then its figures.

Jobs run as those of the command line do, into a results folder; a part that is run again only does
what the folder lacks. The embedded defaults were chosen on other photos or seeds, but for three
of the 96 pairs; the neurons were measured twice (README).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fastdigin import embedded
from fastdigin.commands.parts import run_parts
from fastdigin.demo import (
    counterfactual_part,
    disagreement_part,
    neuron_counterfactual_part,
    neuron_counterfactual_plans,
    neuron_part,
)
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.results.store import read_lines
from fastdigin.tasks.explanation import masked_l1
from fastdigin.tasks.part import Part
from fastdigin_bench.figures import Figure, at_least
from fastdigin_bench.pictures import predictions, read_grey, read_picture, round_trip
from fastdigin_bench.truth_figures import (
    counterfactual_figures,
    disagreement_figures,
    neuron_counterfactual_figures,
    neuron_figures,
)
from fastdigin_bench.truth_part import Measured, Setup

PAIRS, DISAGREEMENTS, NEURONS, PLANS = 96, 48, 20, 48
SEED = 0

Record = dict[str, Any]


def counterfactuals(name: str, setup: Setup, out: Path) -> Measured:
    """The packaged pairs, for the classifier called ``name``."""
    model, classifier = setup.engine.model, setup.classifiers[name]
    judge, count = setup.classifiers["judge"], setup.at_most(PAIRS)
    part = counterfactual_part(setup.engine, classifier, judge, count, SEED)
    photo_of = {id: pair.photo for id, pair in zip(part.ids, embedded.pairs(), strict=False)}
    # A robust classifier's reasons should convince others; a clean one's may be its own.
    target = at_least(0.75) if name == "robust" else None
    return _measure(
        part, out,
        lambda record: outside_distances(model, photo_of[record["id"]], record, out),
        lambda rows: counterfactual_figures(rows, target),
    )  # fmt: skip


def disagreements(setup: Setup, out: Path) -> Measured:
    """The planted classes in turn, f robust and g spurious."""
    f, g, backgrounds = (setup.classifiers[name] for name in ("robust", "spurious", "background"))
    size, count = setup.engine.model.image_size, setup.at_most(DISAGREEMENTS)

    def seen(record: Record) -> Record:
        images = [read_picture(out / record[key], size) for key in ("initial_image", "image")]
        return dict(zip(("seen_before", "seen"), predictions(backgrounds, images), strict=True))

    part = disagreement_part(setup.engine, f, g, count, SEED)
    return _measure(part, out, seen, disagreement_figures)


def neurons(setup: Setup, out: Path) -> Measured:
    """Neurons of the spurious classifier, the planted ones first."""
    spurious = setup.classifiers["spurious"]
    part = neuron_part(setup.engine, spurious, setup.at_most(NEURONS), SEED)
    return _measure(part, out, lambda record: {}, neuron_figures)


def neuron_counterfactuals(setup: Setup, out: Path) -> Measured:
    """Planted neurons, raised and lowered in turn."""
    model, count = setup.engine.model, setup.at_most(PLANS)
    spurious, backgrounds = (setup.classifiers[name] for name in ("spurious", "background"))
    part = neuron_counterfactual_part(setup.engine, spurious, backgrounds, count, SEED)
    by_id = {photo.id: photo for photo in embedded.photos()}
    plans = zip(part.ids, neuron_counterfactual_plans(), strict=False)
    photo_of = {id: by_id[item.id] for id, (item, _, _) in plans}
    return _measure(
        part, out,
        lambda record: inside_distances(model, photo_of[record["id"]], record, out),
        neuron_counterfactual_figures,
    )  # fmt: skip


def outside_distances(
    model: LatentDiffusion, photo: embedded.Photo, record: Record, out: Path
) -> dict[str, float]:
    """The distances of a counterfactual that truth_figures.py describes."""
    true = read_grey(photo.mask_path, model.image_size)
    allowed = torch.maximum(true, read_grey(out / record["mask"], model.image_size))
    original, image, own = _three_images(model, photo, record, out)
    return {
        "outside_l1": masked_l1(image, original, 1 - allowed),
        "outside_l1_autoencoder": masked_l1(own, original, 1 - allowed),
        "outside_true_l1": masked_l1(image, original, 1 - true),
    }


def inside_distances(
    model: LatentDiffusion, photo: embedded.Photo, record: Record, out: Path
) -> dict[str, float]:
    """The same for a neuron counterfactual."""
    true = read_grey(photo.mask_path, model.image_size)
    original, image, own = _three_images(model, photo, record, out)
    inversion = read_picture(out / record["initial_image"], model.image_size)
    return {
        "inside_l1": masked_l1(image, original, true),
        "inside_l1_autoencoder": masked_l1(own, original, true),
        "inside_l1_inversion": masked_l1(inversion, original, true),
    }


def _three_images(model, photo, record, out):
    """The photo, the result, and what the autoencoder alone makes of the photo."""
    original = read_picture(photo.path, model.image_size)
    image = read_picture(out / record["image"], model.image_size)
    return original, image, round_trip(model, original)


def _measure(
    part: Part,
    out: Path,
    look: Callable[[Record], Record],
    figures_of: Callable[[Sequence[Record]], list[Figure]],
) -> Measured:
    """Runs what is not done yet, looks at the pictures of each finished job, sums up.

    The folder may hold more jobs than the part: a longer run was there before.
    """
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the figures
        run_parts([part], out, as_json=False)
    records = {record["id"]: record for record in read_lines(out)}
    done = [records[id] for id in part.ids if records[id]["status"] == "done"]
    figures = figures_of([record | look(record) for record in done])
    return Measured(jobs=len(part.ids), failed=len(part.ids) - len(done), figures=figures)
