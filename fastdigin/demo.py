"""The demo: all four tasks on packaged photos, chosen so that each answer can be checked.

The classifier "spurious" was trained with sneakers almost always on grass, sandals on brick and
bags on gravel. Disagreement and the neuron tasks should find just that.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from itertools import chain, islice

from torch import Tensor

from fastdigin import embedded
from fastdigin.engine.engine import Engine
from fastdigin.models.classifier import Classifier
from fastdigin.tasks import counterfactual as cf
from fastdigin.tasks import disagreement as dis
from fastdigin.tasks import neuron_counterfactual as ncf
from fastdigin.tasks import neurons as neu
from fastdigin.tasks.inputs import ImageInput, collect, read_images
from fastdigin.tasks.part import Part


def demo_parts(engine: Engine, per_task: int, seed: int) -> list[Part]:
    """The four tasks with ``per_task`` jobs each, on the embedded model."""
    robust, spurious, judge, backgrounds = (
        Classifier.load(f"embedded:{name}")
        for name in ("robust", "spurious", "judge", "background")
    )
    return [
        counterfactual_part(engine, robust, judge, per_task, seed),
        disagreement_part(engine, robust, spurious, per_task, seed),
        neuron_part(engine, spurious, per_task, seed),
        neuron_counterfactual_part(engine, spurious, backgrounds, per_task, seed),
    ]


def counterfactual_part(engine, classifier, judge, count, seed) -> Part:
    """The first ``count`` packaged pairs: every beginning of them is a good mix."""
    settings = cf.default_settings(engine.model)
    inputs = collect(["embedded:pairs"], count)
    return Part(
        cf.TASK,
        cf.run_settings(engine.model, settings, classifier, judge, seed),
        cf.job_ids(inputs, classifier),
        lambda skip, tick: cf.counterfactuals(
            engine, inputs, classifier, judge=judge, seed=seed, skip=skip, on_progress=tick
        ),
    )


def disagreement_part(engine, f, g, count, seed) -> Part:
    """The planted classes in turn: where f sees a sneaker, g wants the grass as well."""
    settings = dis.default_settings(engine.model)
    classes = list(embedded.PLANTED)[:count]
    seeds = -(-count // len(classes))
    ids = [dis.job_id(c, n) for n in range(seeds) for c in classes]
    wanted, surplus = ids[:count], ids[count:]
    return Part(
        dis.TASK,
        dis.run_settings(engine.model, settings, f, g, seed),
        wanted,
        lambda skip, tick: dis.disagreements(
            engine, f, g, classes, seeds=seeds, seed=seed, skip={*skip, *surplus}, on_progress=tick
        ),
    )


def neuron_part(engine, classifier, count, seed) -> Part:
    """Neurons in the order of ``planted_neurons_first``."""
    neurons = planted_neurons_first(classifier)[:count]
    settings, words = neu.default_settings(engine.model), embedded.words()
    dataset = _dataset(engine)
    return Part(
        neu.TASK,
        neu.run_settings(engine.model, settings, classifier, words, dataset, seed),
        [neu.job_id(neuron, settings.direction, 0) for neuron in neurons],
        lambda skip, tick: neu.visualise_neurons(
            engine, classifier, neurons, words, dataset, seed=seed, skip=skip, on_progress=tick
        ),
    )  # fmt: skip


def planted_neurons_first(classifier: Classifier) -> list[int]:
    """All neurons: the planted ones, one per background in turn, then the others in order."""
    ranks = itertools.zip_longest(*embedded.planted_neurons().values())
    first = [n for n in dict.fromkeys(chain.from_iterable(ranks)) if n is not None]
    return [*first, *(n for n in range(classifier.num_neurons) if n not in first)]


def neuron_counterfactual_part(engine, classifier, backgrounds, count, seed) -> Part:
    """Planted neurons are raised where their background is absent and lowered where it is not."""
    plans = list(islice(neuron_counterfactual_plans(), count))
    photos, neurons, directions = (list(column) for column in zip(*plans, strict=True))
    settings, dataset = ncf.default_settings(engine.model), _dataset(engine)
    return Part(
        ncf.TASK,
        ncf.run_settings(engine.model, settings, classifier, backgrounds, seed, dataset),
        ncf.job_ids(photos, neurons, directions),
        lambda skip, tick: ncf.neuron_counterfactuals(
            engine, photos, classifier, neurons, directions, dataset=dataset,
            backgrounds=backgrounds, seed=seed, skip=skip, on_progress=tick,
        ),
    )  # fmt: skip


def neuron_counterfactual_plans() -> Iterator[tuple[ImageInput, int, str]]:
    """(photo, neuron, direction): the three backgrounds in turn, raised and lowered in turn.

    Photos of the garment that belongs to the background come first. Gravel and grass are the first
    backgrounds because their pictures were seen to succeed: the demo shows what the task is for,
    and ``fastdigin bench truth`` how often it works.
    """
    garment_of = {background: garment for garment, background in embedded.PLANTED.items()}
    planted = embedded.planted_neurons()
    neuron_of = {b: planted[b][0] for b in ("gravel", "grass", "brick")}
    for number in itertools.count():
        background = list(neuron_of)[number % len(neuron_of)]
        direction = ("max", "min")[number % 2]
        suitable = sorted(
            (p for p in embedded.photos() if (p.background == background) == (direction == "min")),
            key=lambda p: p.garment != garment_of[background],
        )
        choice = number // (2 * len(neuron_of))
        if choice >= len(suitable):
            return
        p = suitable[choice]
        yield (
            ImageInput(p.id, p.path, p.prompt, p.garment, background=p.background),
            neuron_of[background],
            direction,
        )


def _dataset(engine: Engine) -> list[Tensor]:
    return read_images(collect(["embedded:photos"]), engine.model.image_size)
