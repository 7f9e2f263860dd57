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


def test_a_dead_neuron_is_refused_or_warned_of(call, caplog):
    dead = fd.Classifier.load("embedded:clean")
    last = [m for m in dead.network.modules() if isinstance(m, torch.nn.BatchNorm2d)][-1]
    last.weight.data[5], last.bias.data[5] = 0, -1
    images = list(torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    of_dead = {"classifier": dead, "neurons": 5, "dataset": images}
    with pytest.raises(fd.UserError, match="neuron 5 .*does not fire on any of the 3 images"):
        call(fd.visualise_neurons, **of_dead)
    with caplog.at_level(logging.WARNING):
        call(fd.neuron_counterfactuals, **of_dead)
    assert "neuron 5 of embedded:clean does not fire on the 3 images" in caplog.text
