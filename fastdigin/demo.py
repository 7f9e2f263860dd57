"""The demo: all four tasks on packaged photos, chosen so that each answer can be checked.

The classifier "spurious" was trained with sneakers almost always on grass, sandals on brick and
bags on gravel. Disagreement and the neuron tasks should find just that.
"""

import itertools
from collections.abc import Callable, Iterator
from itertools import chain, islice

from torch import Tensor

from fastdigin import embedded
from fastdigin.engine.engine import Engine
from fastdigin.models.classifier import Classifier
from fastdigin.photos import ImageInput, collect, read_images
from fastdigin.tasks.counterfactual import Counterfactuals
from fastdigin.tasks.disagreement import Disagreements
from fastdigin.tasks.neuron_counterfactual import NeuronCounterfactuals
from fastdigin.tasks.neurons import NeuronVisualisations
from fastdigin.tasks.task import Task


def demo_tasks(engine: Engine, per_task: int, seed: int) -> list[Task]:
    """The four tasks with ``per_task`` jobs each, on the embedded model."""
    makers: tuple[Callable[[Engine, int, int], Task], ...] = (
        demo_counterfactuals,
        demo_disagreements,
        demo_neurons,
        demo_neuron_counterfactuals,
    )
    return [make(engine, per_task, seed) for make in makers]


def demo_counterfactuals(
    engine: Engine, count: int, seed: int, classifier: str = "robust"
) -> Counterfactuals:
    """The first ``count`` packaged pairs: every beginning of them is a good mix."""
    return Counterfactuals(
        engine=engine, seed=seed, photos=collect(["embedded:pairs"], count),
        classifier=_packaged(classifier), judge=_packaged("judge"),
    )  # fmt: skip


def demo_disagreements(engine: Engine, count: int, seed: int) -> Disagreements:
    """The planted classes in turn: where f sees a sneaker, g wants the grass as well."""
    classes = list(embedded.PLANTED)[:count]
    seeds = -(-count // len(classes))
    task = Disagreements(
        engine=engine, seed=seed, f=_packaged("robust"), g=_packaged("spurious"), classes=classes,
        seeds=seeds,
    )  # fmt: skip
    in_turn = sorted(task.requests, key=lambda request: request.number)
    wanted = {request.id for request in in_turn[:count]}
    task.requests = [request for request in task.requests if request.id in wanted]
    return task


def demo_neurons(engine: Engine, count: int, seed: int) -> NeuronVisualisations:
    """Neurons in the order of ``planted_neurons_first``."""
    classifier = _packaged("spurious")
    return NeuronVisualisations(
        engine=engine, seed=seed, classifier=classifier,
        neurons=planted_neurons_first(classifier)[:count], words=embedded.words(),
        dataset=_dataset(engine),
    )  # fmt: skip


def planted_neurons_first(classifier: Classifier) -> list[int]:
    """All neurons: the planted ones, one per background in turn, then the others in order."""
    ranks = itertools.zip_longest(*embedded.planted_neurons().values())
    first = [n for n in dict.fromkeys(chain.from_iterable(ranks)) if n is not None]
    return [*first, *(n for n in range(classifier.num_neurons) if n not in first)]


def demo_neuron_counterfactuals(engine: Engine, count: int, seed: int) -> NeuronCounterfactuals:
    """Planted neurons are raised where their background is absent and lowered where it is not."""
    plans = islice(neuron_counterfactual_plans(), count)
    photos, neurons, directions = (list(column) for column in zip(*plans, strict=True))
    return NeuronCounterfactuals(
        engine=engine, seed=seed, photos=photos, classifier=_packaged("spurious"), neuron=neurons,
        direction=directions, dataset=_dataset(engine), backgrounds=_packaged("background"),
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


def _packaged(name: str) -> Classifier:
    return Classifier.load(f"embedded:{name}")


def _dataset(engine: Engine) -> list[Tensor]:
    return read_images(collect(["embedded:photos"]), engine.model.image_size)
