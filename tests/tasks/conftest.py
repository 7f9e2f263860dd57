"""What the tests of the tasks share: an engine, and calls that take a second a job."""

from dataclasses import replace

import pytest
from cli_commands import SNEAKER
from torch import nn


@pytest.fixture(scope="session")
def engine(embedded):
    from fastdigin.engine.engine import Engine

    return Engine(embedded, slots=2)


@pytest.fixture(scope="session")
def clean():
    from fastdigin.models.classifier import Classifier

    return Classifier.load("embedded:clean")


@pytest.fixture(scope="session")
def spurious():
    from fastdigin.models.classifier import Classifier

    return Classifier.load("embedded:spurious")


@pytest.fixture
def quick():
    """Of the optimisation: two steps, two iterations."""
    from fastdigin.engine.job import Settings

    return Settings(steps=2, iterations=2, learning_rate=0.02)


@pytest.fixture(scope="session")
def dataset():
    from fastdigin.photos import collect, read_images

    return read_images(collect(["embedded:photos"], 12), 64)


@pytest.fixture
def call(engine, clean, spurious, quick, dataset):
    """Calls a public function of a task; a test names what is not the default of all tests.

    set: changes of the settings.
    """
    import fastdigin as fd

    of_photo = {"optimisation": quick, "null_text_steps": 1}
    few = {"injection_fractions": (0.5,), "blending_fractions": (0.0,)}
    defaults = {
        fd.counterfactuals: {
            "images": SNEAKER.path, "classifier": clean, "targets": "bag",
            "settings": fd.CounterfactualSettings(**of_photo, **few),
        },
        fd.disagreements: {
            "f": clean, "g": spurious, "classes": "bag",
            "settings": fd.DisagreementSettings(optimisation=quick),
        },
        fd.visualise_neurons: {
            "classifier": spurious, "neurons": 76, "words": ["sneaker on grass", "bag"],
            "dataset": dataset,
            "settings": fd.NeuronSettings(optimisation=quick, samples_per_word=2),
        },
        fd.neuron_counterfactuals: {
            "images": SNEAKER.path, "classifier": spurious, "neurons": 76, "directions": "min",
            "dataset": dataset, "settings": fd.NeuronCounterfactualSettings(**of_photo),
        },
    }  # fmt: skip

    def call(task, set=(), **changes):
        given = defaults[task] | changes
        return task(engine, **given | {"settings": replace(given["settings"], **dict(set))})

    return call


@pytest.fixture
def own_classifier():
    """A user's own network, untrained, with class names of all sorts."""
    import torch

    from fastdigin.models.classifier import Classifier

    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 3),
    )  # fmt: skip
    classes = ("sneaker, trainer", "bag", "<b>boot</b>")
    return Classifier(
        network, size=32, mean=(0.5,) * 3, std=(0.25,) * 3, classes=classes, name="<i>mine"
    )
