import logging

import pytest
import torch

import fastdigin as fd
from fastdigin.tasks.firing import check_fires


def test_what_is_said_of_which_neuron(clean, caplog):
    ranges = {1: (0.0, 2.0), 2: (-1.0, -0.5), 3: (0.7, 0.7), 4: (0.0, 0.0)}
    with caplog.at_level(logging.WARNING):
        check_fires(clean, ranges, 9, must=False)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3
    assert said[0].startswith("neuron 2 of embedded:clean does not fire on the 9 images of dataset")
    assert said[1] == "neuron 3 of embedded:clean gives the same, 0.7, on all of the 9 images of " \
        "dataset"  # fmt: skip
    assert "neuron 4" in said[2]
    with pytest.raises(fd.UserError, match="neuron 4 .* does not fire on any of the 9"):
        check_fires(clean, ranges, 9, must=True)
    check_fires(clean, {4: (0.0, 0.0)}, 1, must=True)  # one image says little


def test_dead_neuron_is_refused_before_any_work(engine, quick):
    dead = fd.Classifier.load("embedded:clean")
    last = [m for m in dead.network.modules() if isinstance(m, torch.nn.BatchNorm2d)][-1]
    last.weight.data[5], last.bias.data[5] = 0, -1
    dataset = list(torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    settings = fd.NeuronSettings(optimisation=quick)
    with pytest.raises(fd.UserError, match="neuron 5 .*does not fire on any of the 3 images"):
        fd.visualise_neurons(engine, dead, [5], ["bag on grass"], dataset, settings=settings)


def test_counterfactuals_only_warn(engine, quick, caplog):
    dead = fd.Classifier.load("embedded:clean")
    last = [m for m in dead.network.modules() if isinstance(m, torch.nn.BatchNorm2d)][-1]
    last.weight.data[5], last.bias.data[5] = 0, -1
    settings = fd.NeuronCounterfactualSettings(optimisation=quick)
    with caplog.at_level(logging.WARNING):
        fd.neuron_counterfactuals(
            engine, "embedded:photos", dead, 5, "max", dataset=list(torch.rand(2, 3, 64, 64)),
            settings=settings,
        )  # fmt: skip
    assert "neuron 5 of embedded:clean does not fire on the 2 images" in caplog.text
