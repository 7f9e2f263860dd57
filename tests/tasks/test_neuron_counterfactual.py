"""Neuron counterfactuals through the library."""

from dataclasses import replace

import pytest
import torch
from cli_commands import SNEAKER as PHOTO

import fastdigin as fd
from fastdigin import embedded as world


def test_max_and_min_of_several_neurons(call, spurious, tmp_path):
    backgrounds = fd.Classifier.load("embedded:background")
    images = [PHOTO.path, fd.ImageInput("own", PHOTO.path, PHOTO.prompt, "sneaker")]
    up, down = call(
        fd.neuron_counterfactuals, images=images, neurons=[76, "3"], directions=["max", "min"],
        backgrounds=backgrounds,
    )  # fmt: skip
    assert up.id == f"{PHOTO.id}-neuron-76-max" and down.id == "own-neuron-3-min"
    for e, sign in ((up, 1), (down, -1)):
        history = e.history
        assert sign * history[-1]["activation"] > sign * history[0]["activation"]
        assert e.background_before == "grass"
        with torch.no_grad():
            activation = spurious.activations(e.image[None])[0, e.neuron]
            confidence = spurious.probabilities(e.image[None])[0, 5]
        assert e.activation == pytest.approx(float(activation), abs=1e-5)
        assert e.class_ == "sneaker"
        assert e.class_confidence == pytest.approx(float(confidence), abs=1e-5)
        e.save(tmp_path)
    assert down.prompt == PHOTO.prompt


def test_a_result_does_not_depend_on_the_others(call):
    others = [p.path for p in world.photos()[:2]]
    many = call(fd.neuron_counterfactuals, images=[*others, PHOTO.path])
    (last,) = (e for e in many if e.id.startswith(PHOTO.id))
    assert last.background_before is None  # nobody was asked
    turned = call(fd.neuron_counterfactuals, images=[PHOTO.path, *others])
    assert torch.equal(last.image, next(turned).image)


def test_same_photo_with_two_targets(call):
    """Targets mean nothing here, but a table for counterfactuals may be given again."""
    items = [fd.ImageInput("x", PHOTO.path, target=target) for target in ("bag", "boot")]
    records = call(fd.neuron_counterfactuals, images=items)
    assert [e.id for e in records] == ["x-neuron-76-min", "x-neuron-76-min-2"]


def test_a_tight_mask_is_smaller(call):
    soft, tight = (
        next(call(fd.neuron_counterfactuals, set={"mask_edge": edge})).pictures["mask"]
        for edge in ("soften", "tighten")
    )
    assert tight.sum() < 0.7 * soft.sum() and (tight == 1).any() and (tight == 0).any()


def test_without_injection_and_blending(call):
    changes = {"injection_fraction": 0.0, "blending_fraction": 0.0, "regularisers": ()}
    (e,) = call(fd.neuron_counterfactuals, set=changes)
    assert e.status == "done" and e.result.job.injection is None


def test_the_best_background_word_is_the_start(call):
    """Of the unchanged prompt and the others, the one that pleases the neuron most at first."""
    item = fd.ImageInput("x", PHOTO.path, PHOTO.prompt, "sneaker", background="grass")

    def first_loss(item, words):
        changes = {"injection_fraction": 0.0, "blending_fraction": 0.0, "background_words": words}
        (e,) = call(fd.neuron_counterfactuals, images=item, set=changes)
        return e.edited_prompt, e.history[0]["neuron_loss"]

    losses = dict(first_loss(item, words) for words in ((), ("brick",), ("gravel",), ("plain",)))
    assert PHOTO.prompt in losses
    chosen, loss = first_loss(item, ("grass", "brick", "gravel", "plain"))
    assert losses[chosen] == loss == min(losses.values())
    assert first_loss(replace(item, background=None), ("brick",))[0] == PHOTO.prompt
