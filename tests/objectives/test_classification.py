from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier
from fastdigin.objectives import ClassConfidence, Cutouts, NeuronActivation

KEY = (7, 3, 1)


def make_classifier(dtype=torch.float64):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.Softplus(), nn.Flatten(), nn.Linear(36, 4)
    )
    options = {"size": 8, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    classifier = Classifier(network, classes=("cat", "dog", "bird", "frog"), **options)
    return classifier.to(dtype=dtype)


def candidate(key=None, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(3, 11, 11, generator=generator, dtype=torch.float64).to(dtype)
    return SimpleNamespace(image=image, latents=torch.zeros(4, 2, 2, dtype=dtype), key=key)


def test_formulas_on_the_plain_image():
    classifier, plain = make_classifier(), candidate()
    z = classifier.logits(plain.image[None])[0]
    p = z.softmax(0)
    margin = z[1] - torch.stack([z[0], z[2], z[3]]).max()
    expected = {"conf": (1 - p[1], p[1]), "log_conf": (-p[1].log(), -(1 - p[1]).log())}
    expected["logits"] = (-margin, margin)
    for form, values in expected.items():
        for maximise, value in zip((True, False), values, strict=True):
            loss = ClassConfidence(classifier, "dog", form=form, maximise=maximise)
            assert loss.index == 1
            torch.testing.assert_close(loss(plain), value)


@pytest.mark.parametrize("form", ["conf", "log_conf", "logits"])
def test_crops_are_averaged(form):
    classifier, cutouts = make_classifier(), Cutouts(count=5, noise=0.1)
    loss = ClassConfidence(classifier, 2, form=form, cutouts=cutouts)
    crops = cutouts(candidate().image, 8, KEY)
    singles = [loss(SimpleNamespace(image=crop, key=None)) for crop in crops]
    torch.testing.assert_close(loss(candidate(KEY)), torch.stack(singles).mean())


def test_key_none_is_the_plain_image_without_crops_or_noise():
    classifier = make_classifier()
    with_crops = ClassConfidence(classifier, 0, cutouts=Cutouts())
    without = ClassConfidence(classifier, 0)
    assert torch.equal(with_crops(candidate()), without(candidate()))
    assert not torch.equal(with_crops(candidate(KEY)), without(candidate(KEY)))
    assert torch.equal(without(candidate(KEY)), without(candidate()))


@pytest.mark.parametrize("form", ["conf", "log_conf", "logits"])
@pytest.mark.parametrize("maximise", [True, False])
def test_gradients(form, maximise):
    loss = ClassConfidence(
        make_classifier(), 3, form=form, maximise=maximise, cutouts=Cutouts(count=2)
    )

    def of_image(image):
        return loss(SimpleNamespace(image=image, key=KEY))

    assert torch.autograd.gradcheck(of_image, candidate().image.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("form", ["conf", "log_conf", "logits"])
@pytest.mark.parametrize("maximise", [True, False])
def test_a_step_down_moves_the_confidence_the_right_way(form, maximise):
    classifier, image = make_classifier(), candidate().image.requires_grad_()
    loss = ClassConfidence(classifier, 1, form=form, maximise=maximise)
    (gradient,) = torch.autograd.grad(loss(SimpleNamespace(image=image, key=None)), image)
    with torch.no_grad():
        before, after = classifier.probabilities(torch.stack([image, image - 1e-3 * gradient]))
    assert (after[1] > before[1]) == maximise


def test_low_precision_agrees():
    exact = ClassConfidence(make_classifier(), 0, cutouts=Cutouts())(candidate(KEY))
    single = make_classifier(torch.float32)
    value = ClassConfidence(single, 0, cutouts=Cutouts())(candidate(KEY, torch.float32))
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-6)


def test_mistakes_are_named():
    classifier = make_classifier()
    with pytest.raises(UserError, match="did you mean 'frog'"):
        ClassConfidence(classifier, "frogg")
    with pytest.raises(UserError, match="form must be one of conf, log_conf, logits, got 'logit'"):
        ClassConfidence(classifier, 0, form="logit")


def test_neuron_activation():
    classifier, plain = make_classifier(), candidate(KEY)
    activation = classifier.activations(plain.image[None])[0, 5]
    torch.testing.assert_close(NeuronActivation(classifier, 5)(plain), -activation)
    loss = NeuronActivation(classifier, 5, maximise=False, scale=4.0)
    torch.testing.assert_close(loss(plain), activation / 4)

    def of_image(image):
        return loss(SimpleNamespace(image=image, key=None))

    assert torch.autograd.gradcheck(of_image, plain.image.requires_grad_(), fast_mode=True)


def test_neuron_activation_on_crops():
    classifier, cutouts = make_classifier(), Cutouts(count=3)
    loss = NeuronActivation(classifier, 5, cutouts=cutouts)
    crops = cutouts(candidate().image, 8, KEY)
    expected = -classifier.activations(crops)[:, 5].mean()
    torch.testing.assert_close(loss(candidate(KEY)), expected)


def test_neuron_mistakes_are_named():
    with pytest.raises(UserError, match="neuron 36 .* 0 to 35"):
        NeuronActivation(make_classifier(), 36)
    for scale in (0.0, -1.0, float("nan")):
        with pytest.raises(UserError, match="scale of neuron 2 must be above 0"):
            NeuronActivation(make_classifier(), 2, scale=scale)
