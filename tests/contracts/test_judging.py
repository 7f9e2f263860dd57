"""On GPUs images are decoded and judged together, on CPUs one by one; each is looked at once."""

import math
from dataclasses import replace

import pytest
import torch
from pretended import PretendedGpu
from tiny import IMAGE_SHAPE, build_classifier, make_job, uniform

from fastdigin import hardware
from fastdigin.engine.engine import Engine
from fastdigin.models.passes import sharing
from fastdigin.objectives import ClassConfidence, Cutouts, Distance, NeuronActivation
from fastdigin.tasks.monitors import Activation, Confidence

SLOTS, STEPS, ITERATIONS = 3, 3, 2
CROPS = Cutouts(count=4)


@pytest.fixture
def decodes(model, monkeypatch):
    """The rows of every decode."""
    rows, decode = [], model.decode
    monkeypatch.setattr(model, "decode", lambda z: (rows.append(len(z)), decode(z))[1])
    return rows


class Watched:
    """A classifier whose passes are counted: (rows, whether for a gradient)."""

    def __init__(self, seed=0):
        self.classifier, self.passes = build_classifier(seed), []
        self.classifier.network.register_forward_hook(
            lambda _, inputs, output: self.passes.append((len(inputs[0]), output.requires_grad))
        )


def losses_of(kind, f, g):
    """The losses and monitors of each task."""
    distance = Distance(uniform(*IMAGE_SHAPE, seed=9))
    if kind == "counterfactual":
        loss = ClassConfidence(f, "boot", cutouts=CROPS)
        return [loss, distance], {"p": Confidence(f, 1)}
    if kind == "disagreement":
        losses = [
            ClassConfidence(f, "bag", "conf", cutouts=CROPS),
            ClassConfidence(g, "bag", "conf", maximise=False, cutouts=CROPS, name="g"),
        ]
        return losses, {"f_p": Confidence(f, 2), "g_p": Confidence(g, 2)}
    loss = NeuronActivation(f, 2, maximise=False)
    return [loss, distance], {"a": Activation(f, 2), "p": Confidence(f, 0)}


def jobs(model, kind, f, g, count=SLOTS):
    losses, monitors = losses_of(kind, f, g)
    return [
        make_job(
            model, str(n), seed=n, steps=STEPS, iterations=ITERATIONS, losses=losses,
            monitors=monitors,
        )
        for n in range(count)
    ]  # fmt: skip


def run(model, queue, slots=SLOTS, **hardware_options):
    """Results by id: on the CPU, or on a GPU where options are given."""
    engine = Engine(model, slots=slots, kept_steps=0, compile="off")
    if not hardware_options:
        return {r.id: r for r in engine.run(queue)}
    with hardware.pretend(PretendedGpu(**hardware_options)):
        return {r.id: r for r in engine.run(queue)}


def assert_close(actual, expected):
    assert actual.keys() == expected.keys()
    for id, result in expected.items():
        assert actual[id].status == "done", actual[id].error
        torch.testing.assert_close(actual[id].image, result.image, rtol=0, atol=1e-9)
        for a, b in zip(actual[id].history, result.history, strict=True):
            assert a == pytest.approx(b, rel=1e-9)


@pytest.mark.parametrize("kind", ["counterfactual", "disagreement", "neuron counterfactual"])
def test_a_gpu_decodes_together_and_each_reader_looks_once(model, decodes, kind):
    f, g = Watched(), Watched(1)
    queue = jobs(model, kind, f.classifier, g.classifier)
    f.passes.clear()
    expected = run(model, queue)
    assert set(decodes) == {1}, "bits are promised on CPUs"
    used = [each for each in (f, g) if each.passes]
    crops = CROPS.count if kind != "neuron counterfactual" else 1
    for each in used:
        # One for each loss; where it looks at crops, one of the plain image for all readers.
        plain = [passed for passed in each.passes if passed == (1, False)]
        looks = ITERATIONS * STEPS * [(crops, True)]
        images = ITERATIONS + 1 if crops > 1 else 1
        assert sorted(each.passes) == sorted(SLOTS * (images * [(1, False)] + looks))
        assert len(plain) == SLOTS * images
        each.passes.clear()
    decodes.clear()

    assert_close(run(model, queue, free=79 * 2**30), expected)
    measured, *rows = decodes
    assert measured == 1, "the planner's"
    assert rows == [SLOTS] * (ITERATIONS * math.ceil(SLOTS * STEPS / SLOTS) + 1)
    for each in used:
        assert {rows for rows, _ in each.passes[1:]} <= {SLOTS * crops, SLOTS}
        assert len(each.passes[1:]) == ITERATIONS * STEPS + images


def test_images_that_fail_together_are_taken_apart(model):
    """A loss that raises, one that is not finite and one without gradient, beside good ones."""

    def loss_of(how):
        def loss(candidate):
            return how(candidate.image.square().mean())

        loss.name, loss.weight = "loss", 1.0
        return [loss]

    def raises(x):
        raise ValueError("the classifier is gone")

    good = jobs(model, "counterfactual", build_classifier(), None, count=2)
    sick = {"raises": raises, "nan": lambda x: x * torch.nan, "detached": lambda x: x.detach()}
    queue = [*good, *(replace(good[0], id=id, losses=loss_of(how)) for id, how in sick.items())]
    expected = run(model, good)
    found = run(model, queue, slots=5, free=79 * 2**30)
    assert "classifier is gone" in found["raises"].error
    assert "is nan" in found["nan"].error and "have no gradient" in found["detached"].error
    assert_close({id: found[id] for id in expected}, expected)


@pytest.mark.parametrize("place", ["decode", "classifier"])
@pytest.mark.parametrize("most", [2, 1])
def test_memory_that_holds_fewer_images_halves_the_width(model, monkeypatch, place, most, caplog):
    classifier, decode = build_classifier(), model.decode
    expected = run(model, jobs(model, "counterfactual", classifier, None, count=4), slots=4)
    failures = []

    def check(rows):
        if rows > most:
            failures.append(rows)
            raise torch.OutOfMemoryError("CUDA out of memory. (pretended)")

    if place == "decode":
        monkeypatch.setattr(model, "decode", lambda z: (check(len(z)), decode(z))[1])
    else:
        classifier.network.register_forward_pre_hook(lambda _, x: check(len(x[0]) / CROPS.count))
    queue = jobs(model, "counterfactual", classifier, None, count=4)
    assert_close(run(model, queue, slots=4, free=79 * 2**30), expected)
    assert failures == [4, 2][: 3 - most], "found out once, and remembered"
    assert "out of memory with 4 images" in caplog.text and "free in pieces" in caplog.text


def test_a_small_gpu_is_planned_for_fewer_images(model):
    """Decoding four takes most of the memory: two fit where four do not."""
    classifier = build_classifier()
    classifier.network.features.append(torch.nn.Upsample(scale_factor=40))  # loss > step
    queue = jobs(model, "counterfactual", classifier, None, count=4)
    planned = set()
    for megabytes in range(4, 60, 4):
        engine = Engine(model, slots=4, kept_steps=0, compile="off")
        with hardware.pretend(PretendedGpu(free=megabytes * 2**20)):
            engine.submit(queue)
            engine._batch.refill(run_stage=None)
        planned.add(engine._batch.plan.width)
    assert planned == {1, 2, 4}


def test_passes_are_shared_between_readers_of_one_image_only():
    watched, image = Watched(), uniform(*IMAGE_SHAPE, seed=1)
    f, passes = watched.classifier, watched.passes
    expected = f.probabilities(image[None]), f.activations(image[None])
    passes.clear()
    with sharing():
        leaf = image.clone().requires_grad_()
        f.activations(leaf[None]).sum().backward()
        assert torch.equal(f.probabilities(leaf.detach()[None]), expected[0])
        assert torch.equal(f.activations(leaf.detach()[None]), expected[1])
        assert passes == [(1, True)], "the pass with a graph serves all"
        f.probabilities(image[None])
        f.probabilities(image.flip(-1)[None])
        f.probabilities(image.transpose(-1, -2)[None])
        assert len(passes) == 4, "other images, each by itself"
        image[0, 0, 0] += 1
        f.probabilities(image[None])
        assert len(passes) == 5, "it was changed in place"
        f.logits(image.clone().requires_grad_()[None])
        assert passes[-1] == (1, True) and len(passes) == 6
    f.probabilities(image[None]), f.probabilities(image[None])
    assert len(passes) == 8, "nothing is kept outside"
