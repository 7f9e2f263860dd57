"""Networks in half precision: fp32 state, and gradients that do not underflow on the way."""

import pytest
import torch
from tiny import build_classifier, build_tiny, make_job, normal

from fastdigin.engine.engine import Engine
from fastdigin.engine.sampler import Step, StepFunctions
from fastdigin.models.classifier import Classifier
from fastdigin.models.passes import sharing
from fastdigin.models.precision import power_of_two_near, rescaled
from fastdigin.objectives import ClassConfidence
from fastdigin_bench.gradients import cosine, in_precision


def step_graph(model):
    """Of one guided step of two samples."""
    text = model.encode_prompts(["a photo of a red boot", ""]).to(model.state_dtype)
    z = normal(2, *model.latent_shape).to(text)
    step = Step(
        torch.tensor([501, 251]),
        torch.tensor([[1.0, -0.1, 1.2, -0.3]] * 2).to(z),
        torch.tensor([3.0, 1.5]).to(z),
    )
    texts = text[:, None].expand(-1, 2, -1, -1)
    return StepFunctions(model).forward_with_graph(z, *texts, step)


def gradients(model, incoming):
    """With respect to z, text and null text."""
    graph = step_graph(model)
    return StepFunctions(model).vjp(graph, incoming.to(graph.z_prev), None)


def unscaled(model, incoming):
    """The same, whatever the precision of the network."""
    graph = step_graph(model)
    return torch.autograd.grad(graph.z_prev, graph.variables, incoming.to(graph.z_prev))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_scale_is_exact_and_brings_samples_near_one(dtype):
    gradient = normal(6, 3, 4, 4).to(dtype) * torch.tensor(
        [1e-30, 1e-9, 1.0, 3e8, 0.0, 1e-42], dtype=dtype
    ).view(6, 1, 1, 1)
    smaller = gradient / 7
    scale = power_of_two_near(gradient, smaller)
    scaled = gradient * scale.view(6, 1, 1, 1)
    assert torch.equal(scaled / scale.view(6, 1, 1, 1), gradient)
    assert (scale.log2() == scale.log2().round()).all() and scale.isfinite().all()
    largest = scaled.abs().amax(dim=(1, 2, 3))
    assert ((largest[:4] >= 0.5) & (largest[:4] < 1)).all()
    assert scale[4] == 1


@pytest.mark.parametrize(("dtype", "least"), [(torch.bfloat16, 0.999), (torch.float16, 0.99999)])
@pytest.mark.parametrize("size", [1.0, 1e-9, 1e9])
def test_a_step_in_half_precision_agrees_with_fp32(embedded, dtype, least, size):
    incoming = size * normal(2, *embedded.latent_shape, seed=3)
    expected = gradients(embedded, incoming)
    actual = gradients(in_precision(embedded, dtype), incoming)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype is torch.float32
        assert cosine(a, e) >= least
        assert float(a.norm()) == pytest.approx(float(e.norm()), rel=0.02)


def test_without_the_scale_fp16_loses_small_gradients(embedded):
    """Or the test above would prove nothing."""
    model = in_precision(embedded, torch.float16)
    lost = unscaled(model, 1e-9 * normal(2, *model.latent_shape, seed=3))
    assert lost[1].abs().max() == 0


@pytest.mark.parametrize("ask", ["logits", "activations", "both"])
def test_small_gradients_go_through_a_classifier_in_fp16(ask):
    """A sure classifier's confidence has them; bits of both are of one pass, with one scale."""
    full = Classifier.load("embedded:robust")
    half = Classifier.load("embedded:robust").to(dtype=torch.float16)
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    size = torch.tensor([1e-9, 1e-3])  # of a row's loss
    found = []
    for classifier in (full, half):
        pixels = image.clone().requires_grad_()
        with sharing():
            total = 0.0
            if ask != "logits":
                total = total + (size * classifier.activations(pixels).sum(dim=1)).sum()
            if ask != "activations":
                total = total + (size * classifier.logits(pixels)[:, 3]).sum()
        found.append(torch.autograd.grad(total, pixels)[0])
    for exact, actual in zip(*found, strict=True):
        assert actual.dtype is torch.float32
        assert cosine(actual, exact) > 0.99
        assert float(actual.norm()) == pytest.approx(float(exact.norm()), rel=0.05)


def test_the_scale_changes_nothing_in_fp32(embedded):
    """Powers of two commute with every operation of a backward, bit for bit."""
    incoming = 1e-5 * normal(2, *embedded.latent_shape, seed=3)
    graph = step_graph(embedded)
    scaled = rescaled(
        lambda given: torch.autograd.grad(graph.z_prev, graph.variables, given), incoming.float()
    )
    pairs = zip(gradients(embedded, incoming), scaled, strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_whole_optimisation_in_half_precision(dtype):
    """State stays in fp32 and the loss falls as it does in fp32, within the precision's noise."""
    full = in_precision(build_tiny().model, torch.float32)
    histories = {}
    for model in (full, in_precision(full, dtype)):
        job = make_job(
            model, losses=[ClassConfidence(build_classifier(), 1)], steps=4, iterations=5
        )
        (result,) = Engine(model, slots=1).run([job])
        assert result.status == "done", result.error
        assert result.latents.dtype is result.conditioning.dtype is torch.float32
        histories[model.dtype] = [row["total"] for row in result.history]
    half, exact = histories[dtype], histories[torch.float32]
    assert half[-1] < half[0] and exact[-1] < exact[0]
    assert half[0] == pytest.approx(exact[0], abs=0.005)
    # Updates amplify rounding: six seeds differ by up to 0.058, and by processors.
    assert half == pytest.approx(exact, abs=0.1)
