"""What the tests of the tasks share: an engine and settings that take a second a job."""

from __future__ import annotations

import pytest
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
