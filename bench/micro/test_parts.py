"""The parts of an iteration by themselves, on the embedded model: ``pytest bench/micro``.

Timed by pytest-benchmark, which prints the table. What they add up to is for `fastdigin bench`.
"""

from __future__ import annotations

import pytest
import torch

from fastdigin.engine.costs import step_inputs
from fastdigin.engine.decoding import decode_one, loss_gradient
from fastdigin.engine.sampler import StepFunctions
from fastdigin.engine.slot import Slot
from fastdigin.models.classifier import Classifier
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.objectives import Cutouts
from fastdigin_bench.text_jobs import text_jobs

SLOTS = (1, 8)


@pytest.fixture(scope="module")
def model():
    return LatentDiffusion.load("embedded", device="cpu")


@pytest.fixture(scope="module")
def classifier():
    return Classifier.load("embedded:robust")


def inputs(model, slots):
    *variables, step = step_inputs(model, slots, True, model.text_length)
    return *(torch.randn_like(x) for x in variables), step


@pytest.mark.parametrize("slots", SLOTS)
def test_a_step_forward(benchmark, model, slots):
    benchmark(StepFunctions(model).forward, *inputs(model, slots))


@pytest.mark.parametrize("slots", SLOTS)
def test_a_step_recomputed_and_pulled_back(benchmark, model, slots):
    z, *others = inputs(model, slots)
    incoming = torch.ones_like(z)
    benchmark(StepFunctions(model).joint, z, *others, incoming, incoming)


def test_a_decode_and_its_losses(benchmark, model, classifier):
    (job,) = text_jobs(model, classifier, 20, 1, 1)
    slot = Slot(job, model)
    x0 = job.latents.clone().requires_grad_()

    def run():
        loss_gradient(slot, decode_one(model, x0), x0, 1.0, (0, 0, 0))

    benchmark(run)


def test_sixteen_crops_and_their_gradient(benchmark, classifier):
    image = torch.rand(3, 64, 64, requires_grad=True)
    cutouts = Cutouts()

    def run():
        torch.autograd.grad(cutouts(image, classifier.size, (0, 0, 0)).sum(), image)

    benchmark(run)


def test_an_update_of_a_slot(benchmark, model, classifier):
    (job,) = text_jobs(model, classifier, 20, 1, 10**9)
    slot = Slot(job, model)
    gradients = {name: torch.randn_like(x) for name, x in slot._variables.items()}
    benchmark(slot.update, gradients)
