"""What holds for every loss: its gradient, its precision, and that its reference stays."""

import pytest
import torch
from tiny import IMAGE_SHAPE, LATENT_SHAPE, build_classifier, uniform

import fastdigin as fd

KEY = (7, 3, 1)
MASK = uniform(*IMAGE_SHAPE[1:], seed=2)


def confidence(dtype, **options):
    return fd.ClassConfidence(build_classifier().to(dtype=dtype), 2, **options)


def neuron(dtype, **options):
    return fd.NeuronActivation(build_classifier().to(dtype=dtype), 5, scale=4.0, **options)


def distance(dtype, shape=IMAGE_SHAPE, **options):
    return fd.Distance(uniform(*shape, seed=1).to(dtype), mask=MASK, **options)


def features(dtype, **options):
    network = build_classifier().to(dtype=dtype)
    reference = uniform(*IMAGE_SHAPE, seed=1).to(dtype)
    return fd.FeatureDistance(network.activations, reference, mask=MASK, **options)


CROPS = fd.Cutouts(count=2)
LOSSES = {
    "conf down": (confidence, {"form": "conf", "maximise": False}),
    "log_conf up": (confidence, {}),
    "log_conf down": (confidence, {"maximise": False}),
    "logits up": (confidence, {"form": "logits"}),
    "confidence of crops": (confidence, {"form": "conf", "cutouts": CROPS}),
    "neuron down, of crops": (neuron, {"maximise": False, "cutouts": CROPS}),
    "l1": (distance, {"norm": "l1", "region": "background"}),
    "latents": (distance, {"shape": LATENT_SHAPE, "space": "latents", "region": "background"}),
    "cosine of features": (features, {"region": "foreground"}),
    "l2 of features": (features, {"norm": "l2", "region": "background"}),
}


def value(loss, image, latents):
    return loss(fd.Candidate(image, latents, KEY))


@pytest.mark.parametrize("case", LOSSES)
def test_gradient_and_precision(case):
    """By finite differences in fp64; fp32 agrees with it."""
    make, options = LOSSES[case]
    inputs = uniform(*IMAGE_SHAPE), uniform(*LATENT_SHAPE, seed=3)
    loss = make(torch.float64, **options)
    exact = value(loss, *inputs)
    assert exact.shape == () and exact.abs() > 1e-4
    single = value(make(torch.float32, **options), *(x.float() for x in inputs))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-6)
    for x in inputs:
        x.requires_grad_()
    assert torch.autograd.gradcheck(lambda *given: value(loss, *given), inputs, fast_mode=True)


@pytest.mark.parametrize(
    "make", [fd.Distance, lambda x: fd.FeatureDistance(lambda y: y.flatten(1), x)]
)
def test_the_reference_is_kept_as_it_was(make):
    reference, image = uniform(*IMAGE_SHAPE).requires_grad_(), uniform(*IMAGE_SHAPE, seed=1)
    loss = make(reference)
    before = value(loss, image, None)
    with torch.no_grad():
        reference.mul_(-1)
    assert not before.requires_grad
    assert torch.equal(value(loss, image, None), before)
