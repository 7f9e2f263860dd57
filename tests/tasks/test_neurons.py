"""Neuron visualisations through the library."""

import math
from dataclasses import replace

import pytest
import torch

import fastdigin as fd
from fastdigin import embedded as world
from fastdigin.photos import collect, read_images

WORDS = ["sneaker on grass", "bag"]


@pytest.fixture(scope="module")
def dataset():
    return read_images(collect(["embedded:photos"], 12), 64)


@pytest.fixture
def settings(quick):
    return fd.NeuronSettings(optimisation=quick, samples_per_word=2)


@torch.no_grad()
def dataset_activations(classifier, images):
    """(images, neurons), one image at a time."""
    return torch.cat([classifier.activations(image[None]) for image in images])


@pytest.mark.parametrize("direction", ["max", "min"])
def test_directions(engine, spurious, dataset, settings, direction):
    settings = replace(settings, direction=direction)
    call = {"images_per_neuron": 2, "settings": settings}
    explanations = list(
        fd.visualise_neurons(engine, spurious, [76, "3", 76], WORDS, dataset, **call)
    )
    assert [e.neuron for e in explanations] == [76, 76, 3, 3]
    assert [e.id for e in explanations][:2] == [
        f"neuron-0076-{direction}-000", f"neuron-0076-{direction}-001",
    ]  # fmt: skip
    maxima = dataset_activations(spurious, dataset).max(dim=0).values
    for e in explanations:
        neuron = e.neuron
        with torch.no_grad():
            activations = spurious.activations(e.image[None])[0]
        assert e.activation == pytest.approx(float(activations[neuron]), abs=1e-4)
        assert e.dataset_max_activation == pytest.approx(float(maxima[neuron]), abs=1e-5)
        other = 3 if neuron == 76 else 76
        expected = float(activations[other] / maxima[other])
        assert e.max_other_activation == pytest.approx(expected, abs=1e-4)
        change = e.activation - e.activation_before
        assert change >= 0 if direction == "max" else change <= 0
    first, second = explanations[:2]  # two starts, the more activating one first
    assert first.activation_before >= second.activation_before
    assert first.seed != second.seed


def test_word_with_the_highest_mean_activation(engine, spurious, dataset, settings):
    start = replace(settings, optimisation=replace(settings.optimisation, iterations=0))
    means = {}
    for word in WORDS:
        explanations = fd.visualise_neurons(
            engine, spurious, 76, [word], dataset, images_per_neuron=2, settings=start
        )
        activations = [e.activation for e in explanations]
        means[word] = sum(activations) / 2
    (e,) = fd.visualise_neurons(engine, spurious, 76, WORDS, dataset, settings=start)
    assert e.word == max(means, key=means.get)


def test_a_callable_names_the_objects(engine, spurious, dataset, settings):
    """It gets the neuron and the images that activate it most, the strongest first."""
    asked = {}

    def name_objects(neuron, images):
        asked[neuron] = images
        return ["bag", "bag"] if neuron == 3 else ["sneaker on grass"]

    explanations = list(
        fd.visualise_neurons(engine, spurious, [76, 3], name_objects, dataset, settings=settings)
    )
    assert {e.neuron: e.word for e in explanations} == {
        76: "sneaker on grass", 3: "bag",
    }  # fmt: skip
    for neuron, images in asked.items():
        activations = dataset_activations(spurious, images)[:, neuron]
        assert len(images) == 9 and torch.equal(activations, activations.sort(descending=True)[0])
        assert activations[0] == dataset_activations(spurious, dataset)[:, neuron].max()


def test_photos_that_stream(engine, spurious, dataset, settings):
    """The same as with the images in memory, whose photos these are; of no other neurons."""
    found = fd.most_activating(spurious, [3, 76], fd.photo_files(["embedded:photos"])[:12])
    call = {
        "settings": replace(settings, optimisation=replace(settings.optimisation, iterations=0))
    }
    seen = []

    def name_objects(neuron, images):
        seen.append(images)
        return WORDS

    records = [
        next(fd.visualise_neurons(engine, spurious, 76, name_objects, data, **call))
        for data in (found, dataset)
    ]
    for key in ("word", "activation", "dataset_max_activation"):
        assert getattr(records[0], key) == getattr(records[1], key)
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True)) and len(seen[0]) == 9
    with pytest.raises(fd.UserError, match="dataset holds nothing of neuron 4"):
        fd.visualise_neurons(engine, spurious, [3, 4], WORDS, found, **call)


def test_own_classifier_and_a_named_layer(engine, own_classifier, dataset, settings, tmp_path):
    layer = own_classifier.at_layer("0")
    (e,) = fd.visualise_neurons(engine, layer, 5, ["<u>bag"], dataset, settings=settings)
    assert e.max_other_activation is None
    e.save(tmp_path)
    page = fd.write_report(tmp_path).read_text(encoding="utf-8")
    assert "<u>bag" not in page and "&lt;u&gt;bag" in page
    (e,) = fd.visualise_neurons(engine, own_classifier, 5, ["bag"], dataset, settings=settings)
    with pytest.raises(fd.UserError, match="layer"):
        e.save(tmp_path)


def test_errors_come_with_the_call(engine, spurious, dataset, settings):
    call = {"settings": settings}
    for neurons, words, images, error in (
        ([], WORDS, dataset, "neurons is empty"),
        ([-1], WORDS, dataset, "neuron -1 does not exist"),
        (99999, WORDS, dataset, "neuron 99999 does not exist"),
        ([3], [], dataset, "words for neuron 3 are empty"),
        ([3], lambda neuron, images: [], dataset, "words for neuron 3 are empty"),
        ([3], ["bag " * 30], dataset, "tokens"),
        ([3], WORDS, [], "dataset is empty"),
    ):
        with pytest.raises(fd.UserError, match=error):
            fd.visualise_neurons(engine, spurious, neurons, words, images, **call)
    for count in (0, 3):
        with pytest.raises(fd.UserError, match="images_per_neuron must lie in 1..2"):
            fd.visualise_neurons(
                engine, spurious, 3, WORDS, dataset, images_per_neuron=count, **call
            )
    with pytest.raises(fd.UserError, match="direction must be one of max, min"):
        fd.NeuronSettings(direction="other")


def test_progress_adds_up_and_starts_with_the_search(engine, spurious, dataset, settings):
    done = []
    explanations = fd.visualise_neurons(
        engine, spurious, [3, 4, 5], WORDS, dataset, settings=settings, on_progress=done.append
    )
    next(explanations)
    assert 0 < done[0] < 1
    assert len(list(explanations)) == 2 and sum(done) == pytest.approx(3)


def test_a_sample_that_fails_does_not_stop_the_search(
    engine, spurious, dataset, settings, monkeypatch
):
    evaluate = type(engine).evaluate

    def one_fails(self, jobs):
        results = evaluate(self, jobs)
        return [replace(r, image=None) if r.id == "bag-0" else r for r in results]

    monkeypatch.setattr(type(engine), "evaluate", one_fails)
    (e,) = fd.visualise_neurons(engine, spurious, 3, WORDS, dataset, settings=settings)
    assert e.word == "sneaker on grass" and math.isfinite(e.activation)


def test_planted_neurons_see_their_background(spurious):
    """The packaged claim that the demo rests on, on the packaged photos."""
    photos = world.photos()
    dataset = read_images(collect(["embedded:photos"]), 64)
    activations = dataset_activations(spurious, dataset)
    for background, neurons in world.planted_neurons().items():
        there = torch.tensor([p.background == background for p in photos])
        seen = activations[:, neurons[0]]
        assert seen[there].mean() > seen[~there].mean()
