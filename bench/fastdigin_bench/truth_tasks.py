"""The parts of ``fastdigin bench truth`` that run a task: its jobs, then its figures.

Jobs run as those of the command line do, into a results folder; a part that is run again only does
what the folder lacks. The embedded defaults were chosen on other photos or seeds, but for three
of the 96 pairs; the neurons were measured twice (bench/README.md).
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

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
from fastdigin.results import CounterfactualRecord, NeuronCounterfactualRecord, Record, read_records
from fastdigin.results.pictures import read_picture
from fastdigin.tasks.explanation import masked_l1
from fastdigin.tasks.part import Part
from fastdigin_bench.figures import at_least
from fastdigin_bench.pictures import predictions, round_trip
from fastdigin_bench.truth_figures import (
    Backgrounds,
    Inside,
    Outside,
    counterfactual_figures,
    disagreement_figures,
    neuron_counterfactual_figures,
    neuron_figures,
)
from fastdigin_bench.truth_part import Measured, Setup

PAIRS, DISAGREEMENTS, NEURONS, PLANS = 96, 48, 20, 48
SEED = 0


def counterfactuals(name: str, setup: Setup, out: Path) -> Measured:
    """The packaged pairs, for the classifier called ``name``."""
    classifier, judge = setup.classifiers[name], setup.classifiers["judge"]
    part = counterfactual_part(setup.engine, classifier, judge, setup.at_most(PAIRS), SEED)
    done = finished(part, out)
    photo_of = {id: pair.photo for id, pair in zip(part.ids, embedded.pairs(), strict=False)}
    looks = [outside(setup.engine.model, photo_of[record.id], record) for record in done]
    # A robust classifier's reasons should convince others; a clean one's may be its own.
    target = at_least(0.75) if name == "robust" else None
    return Measured.of(part.ids, done, counterfactual_figures(done, looks, target))


def disagreements(setup: Setup, out: Path) -> Measured:
    """The planted classes in turn, f robust and g spurious."""
    f, g, backgrounds = (setup.classifiers[name] for name in ("robust", "spurious", "background"))
    part = disagreement_part(setup.engine, f, g, setup.at_most(DISAGREEMENTS), SEED)
    done = finished(part, out)
    looks = [Backgrounds(*predictions(backgrounds, [r.initial_image, r.image])) for r in done]
    return Measured.of(part.ids, done, disagreement_figures(done, looks))


def neurons(setup: Setup, out: Path) -> Measured:
    """Neurons of the spurious classifier, the planted ones first."""
    spurious = setup.classifiers["spurious"]
    part = neuron_part(setup.engine, spurious, setup.at_most(NEURONS), SEED)
    done = finished(part, out)
    return Measured.of(part.ids, done, neuron_figures(done))


def neuron_counterfactuals(setup: Setup, out: Path) -> Measured:
    """Planted neurons, raised and lowered in turn."""
    spurious, backgrounds = (setup.classifiers[name] for name in ("spurious", "background"))
    count = setup.at_most(PLANS)
    part = neuron_counterfactual_part(setup.engine, spurious, backgrounds, count, SEED)
    done = finished(part, out)
    by_id = {photo.id: photo for photo in embedded.photos()}
    plans = zip(part.ids, neuron_counterfactual_plans(), strict=False)
    photo_of = {id: by_id[item.id] for id, (item, _, _) in plans}
    looks = [inside(setup.engine.model, photo_of[record.id], record) for record in done]
    return Measured.of(part.ids, done, neuron_counterfactual_figures(done, looks))


def outside(model: LatentDiffusion, photo: embedded.Photo, record: CounterfactualRecord) -> Outside:
    """How much of the photo changed where nothing had to."""
    original, true = read_picture(photo.path), read_picture(photo.mask_path)
    forbidden = 1 - torch.maximum(true, record.mask)
    return Outside(
        result=masked_l1(record.image, original, forbidden),
        autoencoder=masked_l1(round_trip(model, original), original, forbidden),
        result_true_mask=masked_l1(record.image, original, 1 - true),
    )


def inside(
    model: LatentDiffusion, photo: embedded.Photo, record: NeuronCounterfactualRecord
) -> Inside:
    """How much of the garment changed."""
    original, true = read_picture(photo.path), read_picture(photo.mask_path)
    return Inside(
        result=masked_l1(record.image, original, true),
        autoencoder=masked_l1(round_trip(model, original), original, true),
        inversion=masked_l1(record.initial_image, original, true),
    )


def finished(part: Part, out: Path) -> list[Record]:
    """Runs what ``out`` lacks; the records of the part's jobs that are done, in their order.

    The folder may hold more jobs than the part: a longer run was there before.
    """
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the figures
        run_parts([part], out, as_json=False)
    records = {record.id: record for record in read_records(out)}
    return [records[id] for id in part.ids if records[id].status == "done"]
