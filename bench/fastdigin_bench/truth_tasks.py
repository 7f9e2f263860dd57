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
from fastdigin.commands.run import run_tasks
from fastdigin.demo import (
    demo_counterfactuals,
    demo_disagreements,
    demo_neuron_counterfactuals,
    demo_neurons,
)
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.results import CounterfactualRecord, NeuronCounterfactualRecord, Record, read_records
from fastdigin.results.pictures import read_picture
from fastdigin.tasks.masked import masked_l1
from fastdigin.tasks.photo_task import PhotoTask
from fastdigin.tasks.task import Task
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
    task = demo_counterfactuals(setup.engine, setup.at_most(PAIRS), SEED, classifier=name)
    done, photos = finished(task, out), photos_of(task)
    looks = [outside(setup.engine.model, photos[record.id], record) for record in done]
    # A robust classifier's reasons should convince others; a clean one's may be its own.
    target = at_least(0.75) if name == "robust" else None
    return Measured.of(ids(task), done, counterfactual_figures(done, looks, target))


def disagreements(setup: Setup, out: Path) -> Measured:
    """The planted classes in turn, f robust and g spurious."""
    task = demo_disagreements(setup.engine, setup.at_most(DISAGREEMENTS), SEED)
    done, backgrounds = finished(task, out), setup.classifiers["background"]
    looks = [Backgrounds(*predictions(backgrounds, [r.initial_image, r.image])) for r in done]
    return Measured.of(ids(task), done, disagreement_figures(done, looks))


def neurons(setup: Setup, out: Path) -> Measured:
    """Neurons of the spurious classifier, the planted ones first."""
    task = demo_neurons(setup.engine, setup.at_most(NEURONS), SEED)
    done = finished(task, out)
    return Measured.of(ids(task), done, neuron_figures(done))


def neuron_counterfactuals(setup: Setup, out: Path) -> Measured:
    """Planted neurons, raised and lowered in turn."""
    task = demo_neuron_counterfactuals(setup.engine, setup.at_most(PLANS), SEED)
    done, photos = finished(task, out), photos_of(task)
    looks = [inside(setup.engine.model, photos[record.id], record) for record in done]
    return Measured.of(ids(task), done, neuron_counterfactual_figures(done, looks))


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


def ids(task: Task) -> list[str]:
    """Of all its jobs, in their order."""
    return [request.id for request in task.requests]


def photos_of(task: PhotoTask) -> dict[str, embedded.Photo]:
    """Job id -> the packaged photo."""
    by_id = {photo.id: photo for photo in embedded.photos()}
    return {request.id: by_id[request.item.id] for request in task.requests}


def finished(task: Task, out: Path) -> list[Record]:
    """Runs what ``out`` lacks; the records of the task's jobs that are done, in their order.

    The folder may hold more jobs than the task: a longer run was there before.
    """
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the figures
        run_tasks([task], out, as_json=False)
    records = {record.id: record for record in read_records(out)}
    return [records[id] for id in ids(task) if records[id].status == "done"]
