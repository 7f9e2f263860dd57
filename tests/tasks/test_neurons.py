"""Neuron visualisations through the library."""

import math
from dataclasses import replace

import pytest
import torch

import fastdigin as fd
from fastdigin import embedded
from fastdigin.tasks.neurons import NeuronVisualisations

WORDS = ["sneaker on grass", "bag"]


@torch.no_grad()
def dataset_activations(classifier, images):
    """(images, neurons), one image at a time."""
    return torch.cat([classifier.activations(image[None]) for image in images])


@pytest.mark.parametrize("direction", ["max", "min"])
def test_directions(call, spurious, dataset, direction):
    explanations = list(
        call(
            fd.visualise_neurons, neurons=[76, "3", 76], images_per_neuron=2,
            set={"direction": direction},
        )
    )  # fmt: skip
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


def test_word_with_the_highest_mean_activation(call, quick):
    start = {"optimisation": replace(quick, iterations=0)}
    means = {}
    for word in WORDS:
        found = call(fd.visualise_neurons, words=[word], images_per_neuron=2, set=start)
        means[word] = sum(e.activation for e in found) / 2
    (e,) = call(fd.visualise_neurons, set=start)
    assert e.word == max(means, key=means.get)


def test_a_callable_names_the_objects(call, spurious, dataset):
    """It gets the neuron and the images that activate it most, the strongest first."""
    asked = {}

    def name_objects(neuron, images):
        asked[neuron] = images
        return ["bag", "bag"] if neuron == 3 else ["sneaker on grass"]

    found = call(fd.visualise_neurons, neurons=[76, 3], words=name_objects)
    assert {e.neuron: e.word for e in found} == {76: "sneaker on grass", 3: "bag"}
    for neuron, images in asked.items():
        activations = dataset_activations(spurious, images)[:, neuron]
        assert len(images) == 9 and torch.equal(activations, activations.sort(descending=True)[0])
        assert activations[0] == dataset_activations(spurious, dataset)[:, neuron].max()


def test_photos_that_stream(call, spurious, dataset, quick):
    """The same as with the images in memory, whose photos these are; of no other neurons."""
    found = fd.most_activating(spurious, [3, 76], fd.photo_files(["embedded:photos"])[:12])
    start, seen = {"optimisation": replace(quick, iterations=0)}, []

    def name_objects(neuron, images):
        seen.append(images)
        return WORDS

    records = [
        next(call(fd.visualise_neurons, words=name_objects, dataset=data, set=start))
        for data in (found, dataset)
    ]
    for key in ("word", "activation", "dataset_max_activation"):
        assert getattr(records[0], key) == getattr(records[1], key)
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True)) and len(seen[0]) == 9
    with pytest.raises(fd.UserError, match="dataset holds nothing of neuron 4"):
        call(fd.visualise_neurons, neurons=[3, 4], dataset=found)


def test_own_classifier_and_a_named_layer(call, own_classifier, tmp_path):
    layer = own_classifier.at_layer("0")
    (e,) = call(fd.visualise_neurons, classifier=layer, neurons=5, words=["<u>bag"])
    assert e.max_other_activation is None
    e.save(tmp_path)
    page = fd.write_report(tmp_path).read_text(encoding="utf-8")
    assert "<u>bag" not in page and "&lt;u&gt;bag" in page
    (e,) = call(fd.visualise_neurons, classifier=own_classifier, neurons=5, words=["bag"])
    with pytest.raises(fd.UserError, match="layer"):
        e.save(tmp_path)


def test_a_sample_that_fails_does_not_stop_the_search(call, engine, monkeypatch):
    evaluate = type(engine).evaluate

    def one_fails(self, jobs, *on_progress):
        results = evaluate(self, jobs, *on_progress)
        return [replace(r, image=None) if r.id == "bag-0" else r for r in results]

    monkeypatch.setattr(type(engine), "evaluate", one_fails)
    (e,) = call(fd.visualise_neurons, neurons=3)
    assert e.word == "sneaker on grass" and math.isfinite(e.activation)


def test_the_words_that_did_best_at_first_are_drawn_again(call, spurious, monkeypatch):
    """Eight words, of whose first samples four go on; of those the best mean wins."""
    words = embedded.words()[:8]
    firsts, seconds = (1, 8, 7, 6, 5, 2, 3, 4), (99, 1, 2, 8, 4, 99, 99, 99)
    activations = {f"{w}-0": a for w, a in zip(words, firsts, strict=True)}
    activations |= {f"{w}-1": a for w, a in zip(words, seconds, strict=True)}
    original, asked = NeuronVisualisations._activations, []

    def known(self, result):
        if result.id not in activations:  # the visualisation itself
            return original(self, result)
        asked.append(result.id)
        return torch.full((spurious.num_neurons,), float(activations[result.id]))

    monkeypatch.setattr(NeuronVisualisations, "_activations", known)
    (e,) = call(fd.visualise_neurons, neurons=3, words=words)
    assert e.word == words[3]  # a mean of 7: more than of 4.5, and 50 was never seen
    assert asked == [f"{w}-0" for w in words] + [f"{w}-1" for w in words[1:5]]


def test_a_neuron_whose_words_cannot_be_tried_fails_alone(call, monkeypatch):
    """Two neurons in one batch, each with words of its own; the classifier refuses one of them."""
    original = NeuronVisualisations._activations

    def refusing(self, result):
        if result.id.startswith("bag"):
            raise ValueError("no activations")
        return original(self, result)

    monkeypatch.setattr(NeuronVisualisations, "_activations", refusing)
    words = {76: ["sneaker on grass"], 3: ["bag"]}
    found = call(fd.visualise_neurons, neurons=[3, 76], words=lambda neuron, images: words[neuron])
    by_neuron = {e.id.split("-")[1]: e for e in found}
    assert by_neuron["0003"].error == "ValueError: no activations"
    assert by_neuron["0076"].status == "done"
