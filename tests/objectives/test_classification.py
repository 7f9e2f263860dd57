"""A class's confidence and a neuron's activation, by their formulas."""

import pytest
import torch
from tiny import IMAGE_SHAPE, build_classifier, uniform

from fastdigin.engine.job import Candidate
from fastdigin.errors import UserError
from fastdigin.objectives import ClassConfidence, Cutouts, NeuronActivation

KEY = (7, 3, 1)
FORMS = ("conf", "log_conf", "logits")


def candidate(key=None):
    return Candidate(uniform(*IMAGE_SHAPE), None, key)


@pytest.fixture(scope="module")
def classifier():
    return build_classifier()


def test_formulas_on_the_plain_image(classifier):
    plain = candidate()
    z = classifier.logits(plain.image[None])[0]
    p = z.softmax(0)
    margin = z[1] - torch.maximum(z[0], z[2])
    expected = {"conf": (1 - p[1], p[1]), "log_conf": (-p[1].log(), -(1 - p[1]).log())}
    expected["logits"] = (-margin, margin)
    for form, values in expected.items():
        for maximise, value in zip((True, False), values, strict=True):
            loss = ClassConfidence(classifier, "boot", form=form, maximise=maximise)
            assert loss.index == 1
            torch.testing.assert_close(loss(plain), value)
    activation = classifier.activations(plain.image[None])[0, 5]
    torch.testing.assert_close(NeuronActivation(classifier, 5)(plain), -activation)
    down = NeuronActivation(classifier, 5, maximise=False, scale=4.0)
    torch.testing.assert_close(down(plain), activation / 4)


@pytest.mark.parametrize("form", [*FORMS, "neuron"])
def test_crops_are_averaged_and_only_a_key_asks_for_them(classifier, form):
    cutouts = Cutouts(count=5, noise=0.1)

    def make(**options):
        if form == "neuron":
            return NeuronActivation(classifier, 5, **options)
        return ClassConfidence(classifier, 2, form=form, **options)

    loss, plain = make(cutouts=cutouts), make()
    crops = cutouts(candidate().image, classifier.size, KEY)
    singles = [plain(Candidate(crop, None)) for crop in crops]
    torch.testing.assert_close(loss(candidate(KEY)), torch.stack(singles).mean())
    assert torch.equal(loss(candidate()), plain(candidate()))
    assert torch.equal(plain(candidate(KEY)), plain(candidate()))
    assert not torch.equal(loss(candidate(KEY)), plain(candidate()))


MISTAKES = [
    (ClassConfidence, {"index": "boott"}, "did you mean 'boot'"),
    (ClassConfidence, {"index": 0, "form": "logit"}, "form must be one of conf, .*, got 'logit'"),
    (NeuronActivation, {"neuron": 6}, "neuron 6 .* 0 to 5"),
    (NeuronActivation, {"neuron": 2, "scale": 0.0}, "scale of neuron 2 must be above 0"),
    (NeuronActivation, {"neuron": 2, "scale": float("nan")}, "scale of neuron 2 must be above 0"),
]


@pytest.mark.parametrize(("make", "arguments", "message"), MISTAKES)
def test_mistakes_are_named(classifier, make, arguments, message):
    with pytest.raises(UserError, match=message):
        make(classifier, **arguments)
