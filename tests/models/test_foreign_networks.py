"""Networks of other people: what they return, their gradients, and which neuron is read."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastdigin as fd
from fastdigin.models.classifiers.checks import check_classifier
from fastdigin.models.resampling import resample

OPTIONS = {"size": 8, "mean": (0.5,) * 3, "std": (0.25,) * 3}
WORDS = ("cat", "dog", "bird")


class Network(nn.Module):
    """Two convolutions and a head; ``wrap`` changes what it returns."""

    def __init__(self, classes=3, wrap=lambda x: x):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3))
        self.head = nn.Linear(5, classes)
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(self.head(self.body(x).relu().mean((2, 3))))


def images(batch=2, side=12, dtype=torch.float32):
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(3), dtype=dtype)


def made(network=None, classes=WORDS, **options):
    return fd.Classifier(network or Network(len(classes)), classes=classes, **OPTIONS, **options)


@pytest.mark.parametrize("form", ["conf", "log_conf", "logits"])
@pytest.mark.parametrize("maximise", [True, False])
def test_objectives_of_classes_that_stand_for_themselves(form, maximise):
    classifier = made(activation="sigmoid")
    image = images(1)[0]
    z = classifier.logits(image[None])[0, 1]
    p = z.sigmoid()
    torch.testing.assert_close(classifier.probabilities(image[None])[0, 1], p)
    expected = {
        "conf": 1 - p if maximise else p,
        "log_conf": -p.log() if maximise else -(1 - p).log(),
        "logits": -z if maximise else z,
    }[form]
    loss = fd.ClassConfidence(classifier, "dog", form=form, maximise=maximise)
    torch.testing.assert_close(loss(fd.Candidate(image, None)), expected)


@pytest.mark.parametrize("squeezed", [False, True])
@pytest.mark.parametrize("classes", [("hot dog",), ("no", "hot dog")])
def test_a_single_logit_tells_two_classes_apart(classes, squeezed):
    network = Network(1, (lambda x: x.squeeze(1)) if squeezed else (lambda x: x))
    classifier = made(network, classes)
    z = network(classifier._inputs(classifier.prepare(images()))).view(-1)
    expected = torch.stack([1 - z.sigmoid(), z.sigmoid()], dim=1)
    torch.testing.assert_close(classifier.probabilities(images()), expected)
    assert classifier.class_index("hot dog") == 1
    assert classifier.classes[0] == ("not hot dog" if len(classes) == 1 else "no")
    loss = fd.ClassConfidence(classifier, "hot dog")
    torch.testing.assert_close(loss(fd.Candidate(images()[0], None)), -z[0].sigmoid().log())


@pytest.mark.parametrize("target", ["not hot dog", "hot dog"])
def test_a_single_logit_of_classes_that_stand_for_themselves(target):
    """Either class has a confidence of its own and a gradient."""
    classifier = made(Network(1), ("hot dog",), activation="sigmoid")
    image = images(1)[0].requires_grad_()
    z = classifier.network(classifier._inputs(classifier.prepare(image[None]))).view(())
    p = z.sigmoid() if target == "hot dog" else 1 - z.sigmoid()
    index = classifier.class_index(target)
    torch.testing.assert_close(classifier.probabilities(image[None])[0, index], p)
    torch.testing.assert_close(classifier.at_classes().activations(image[None])[0].sum(), 0 * z)
    loss = fd.ClassConfidence(classifier, target)(fd.Candidate(image, None))
    torch.testing.assert_close(loss, -p.log())
    assert torch.autograd.grad(loss, image)[0].abs().max() > 0


def test_which_class_is_seen():
    p = torch.tensor([0.7, 0.6, 0.1])
    one, each = made(), made(activation="sigmoid")
    assert [one.sees(p, n) for n in range(3)] == [True, False, False]
    assert [each.sees(p, n) for n in range(3)] == [True, True, False]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: SimpleNamespace(logits=x),
        lambda x: {"logits": x, "features": x[:, :2]},
        lambda x: {"out": x, "aux": x.mean()},
        lambda x: (x, x[:, :, None]),
        lambda x: [x],
    ],
)
def test_logits_are_found_in_what_a_network_returns(wrap):
    found = made(Network(3, wrap)).logits(images())
    torch.testing.assert_close(found, made().logits(images()))


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (lambda x: x[:, :2], r"3 names, but its network returns logits \(1, 2\)"),
        (lambda x: {"a": x, "b": x}, r"returns a \(1, 3\), b \(1, 3\): give one name per logit"),
        (lambda x: x.numpy(), "returns logits <class 'numpy.ndarray'>"),
        (lambda x: x.softmax(1), "returns probabilities, .* without the softmax at its end"),
    ],
)
def test_outputs_that_are_no_logits_are_refused_at_once(wrap, words):
    with pytest.raises(fd.UserError, match=words):
        check_classifier(made(Network(3, wrap)))


def through_numpy(x):
    return torch.from_numpy(x.detach().numpy().copy())


@pytest.mark.parametrize(
    "wrap",
    [torch.no_grad()(lambda x: 2 * x), torch.Tensor.detach, torch.round, through_numpy],
    ids=["no_grad", "detach", "round", "numpy"],
)
def test_without_a_gradient_nothing_can_be_explained(wrap):
    classifier = made(Network(3, wrap))
    check_classifier(classifier)  # it may still be asked
    with pytest.raises(
        fd.UserError, match="no gradient of the logits of classifier reaches the image"
    ):
        check_classifier(classifier, "logits")
    check_classifier(classifier, "activations")  # those before it have one
    check_classifier(made(), "logits")


def test_a_classifier_under_autocast():
    """Forward inside, backward outside."""
    classifier, x = made(), images().requires_grad_()
    pixels = resample(x, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(classifier.prepare(x), pixels)
        loss = fd.ClassConfidence(classifier, "dog")(fd.Candidate(x[0], None))
        activations = classifier.activations(x)
    (loss + activations.sum()).backward()
    assert x.grad[0].any() and x.grad.isfinite().all()
    assert loss.dtype == torch.float32 == activations.dtype
    torch.testing.assert_close(
        loss, fd.ClassConfidence(classifier, "dog")(fd.Candidate(x[0], None)), rtol=0.05, atol=0.02
    )


@pytest.mark.parametrize("channels", ["gray", "bgr"])
def test_networks_with_other_channels(channels):
    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(1, 2)

        def forward(self, x):
            assert x.shape[1] == (1 if channels == "gray" else 3)
            return self.head(x[:, 0].mean((1, 2))[:, None])

    weights = {"gray": (0.299, 0.587, 0.114), "bgr": (0, 0, 1)}[channels]
    count = 1 if channels == "gray" else 3
    classifier = fd.Classifier(
        First(), size=8, mean=(0.5,) * count, std=(0.25,) * count, classes="ab", channels=channels
    )
    luminance = (images() * torch.tensor(weights).view(3, 1, 1)).sum(1).mean((1, 2))
    torch.testing.assert_close(classifier.activations(images())[:, 0], (luminance - 0.5) / 0.25)


class InPlace(nn.Module):
    """Every way to change a module's output after it ran."""

    def __init__(self, inplace: bool):
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=inplace)
        self.second = nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4, 2)
        self.inplace = inplace

    def forward(self, x):
        x = self.relu(self.norm(self.conv(x)))
        x = self.relu(self.second(x))
        x = x.mean((2, 3))
        out = self.head(x)
        if self.inplace:
            x.mul_(0)
        return out


@pytest.mark.parametrize("layer", ["conv", "norm", "relu:1", "relu:2", "second", None])
def test_neurons_are_those_that_were_named(layer):
    """Exactly those that a hook sees in a network without operations in place."""
    changed, plain = InPlace(True), InPlace(False)
    classifier = made(changed.eval(), "ab", layer=layer)
    seen = []
    name, _, number = (layer or "head").partition(":")
    module = plain.eval().get_submodule(name)
    module.register_forward_hook(lambda _, i, o: seen.append(o if layer else i[0]))
    with torch.no_grad():
        plain(classifier._inputs(classifier.prepare(images())))
        found = classifier.activations(images())
    expected = seen[int(number or 1) - 1]
    assert torch.equal(found, expected.mean((2, 3)) if layer else expected)


def test_a_module_that_runs_twice_is_named_with_its_run():
    with pytest.raises(fd.UserError, match="'relu' runs 2 times .* name one run, relu:1, relu:2"):
        made(InPlace(True), "ab", layer="relu").activations(images())
    with pytest.raises(fd.UserError, match="'relu:3' runs 2 times"):
        check_classifier(made(InPlace(True), "ab", layer="relu:3"), "activations")


class Off(nn.Module):
    """Its neuron fires for images brighter than ``bound``: below, no gradient reaches the image."""

    def __init__(self, act, bound=0.9):
        super().__init__()
        self.act, self.bound, self.head = act, bound, nn.Linear(2, 2)

    def forward(self, x):
        x = x.mean((1, 2, 3))
        return self.head(self.act(torch.stack([x, 2 * x], 1) - self.bound))


@pytest.mark.parametrize(
    "act", [F.relu, nn.ReLU(), nn.ReLU(inplace=True), torch.relu_, F.relu6, lambda x: x.relu()]
)
def test_a_neuron_that_is_off_can_be_switched_on(act):
    classifier = fd.Classifier(Off(act), size=4, mean=(0,) * 3, std=(1,) * 3, classes="ab")
    x = torch.full((3, 4, 4), 0.5)
    value = lambda through: _descent(classifier, x, through)  # noqa: E731
    assert value(False) == 0
    assert value(True) > 0.02


def _descent(classifier, image, through):
    loss = fd.NeuronActivation(classifier, 0, through_relu=through)
    image = image.clone().requires_grad_()
    for _ in range(60):
        (gradient,) = torch.autograd.grad(loss(fd.Candidate(image, None)), image)
        image = (image - gradient).clamp(0, 1).detach().requires_grad_()
    return classifier.activations(image[None])[0, 0].item()


def test_a_neuron_that_is_on_has_its_own_gradient():
    classifier, x = made(), images().requires_grad_()
    neuron = int(classifier.activations(x)[0].argmax())
    losses = [
        fd.NeuronActivation(classifier, neuron, through_relu=through) for through in (False, True)
    ]
    assert losses[0](fd.Candidate(x[0], None)).item() < 0
    gradients = [torch.autograd.grad(loss(fd.Candidate(x[0], None)), x)[0] for loss in losses]
    assert torch.equal(*gradients)
