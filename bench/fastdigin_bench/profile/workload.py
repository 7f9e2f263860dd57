"""The four tasks as they are profiled: as many images as there are slots."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fastdigin.engine.engine import Engine
from fastdigin.models.classifier import Classifier
from fastdigin.photos import ImageInput
from fastdigin.retrieval.activating import Activating
from fastdigin.tasks.counterfactual import Counterfactuals
from fastdigin.tasks.disagreement import Disagreements
from fastdigin.tasks.neuron_counterfactual import NeuronCounterfactuals
from fastdigin.tasks.neurons import NeuronVisualisations
from fastdigin.tasks.task import Task

WORDS = ("cat", "dog", "grass", "brick", "boat")
"""What the search for a neuron's start tries."""


class _Another(torch.nn.Sequential):
    """A network that is not f, made of f. It stays where it is: fake weights cannot be moved."""

    def to(self, *_, **__):
        return self


def _of_disagreements(classifier: Classifier, photos: list[ImageInput]) -> dict[str, Any]:
    g = classifier.with_classes(classifier.classes)
    g.network, g.name = _Another(g.network), "another"  # it costs what f costs
    return {"f": classifier, "g": g, "classes": ["cat"], "seeds": len(photos)}


def _of_neurons(classifier: Classifier, photos: list[ImageInput]) -> dict[str, Any]:
    numbers = list(range(len(photos)))
    ranges = dict.fromkeys(numbers, (0.0, 1.0))
    dataset = Activating(dict.fromkeys(numbers, []), ranges, 1, {}, "profile")
    return {"classifier": classifier, "neurons": numbers, "words": WORDS, "dataset": dataset}


_TASKS: Mapping[str, tuple[type[Task], Callable[..., dict[str, Any]]]] = {
    "counterfactual": (
        Counterfactuals,
        lambda classifier, photos: {"classifier": classifier, "photos": photos, "target": "dog"},
    ),
    "disagreement": (Disagreements, _of_disagreements),
    "neuron": (NeuronVisualisations, _of_neurons),
    "neuron-counterfactual": (
        NeuronCounterfactuals,
        lambda classifier, photos: {
            "classifier": classifier, "photos": photos, "neuron": 0, "direction": "max",
        },
    ),
}  # fmt: skip
"""name -> its class, and what that is given: of a classifier and photos."""
TASKS = tuple(_TASKS)


def task_class(name: str) -> type[Task]:
    """The task of a name of TASKS."""
    return _TASKS[name][0]


def make_task(
    name: str, engine: Engine, classifier: Classifier, folder: Path, count: int, settings: Any
) -> Task:
    """A task of ``count`` images. folder: takes the photos, alike but each in a file of its own."""
    size, photos = engine.model.image_size, []
    for n in range(count):
        file = folder / f"photo-{n}.png"
        Image.new("RGB", (size, size), "grey").save(file)
        photos.append(ImageInput(file.stem, file, "a photo of a cat", "cat"))
    kind, given = _TASKS[name]
    return kind(engine=engine, settings=settings, **given(classifier, photos))
