"""Neuron counterfactuals through the library."""

from dataclasses import replace

import pytest
import torch

import fastdigin as fd
from fastdigin import embedded as world
from fastdigin.photos import collect, read_images

PHOTO = next(p for p in world.photos() if p.garment == "sneaker" and p.background == "grass")


@pytest.fixture
def settings(quick):
    return fd.NeuronCounterfactualSettings(optimisation=quick, null_text_steps=1)


@pytest.fixture(scope="module")
def dataset():
    return read_images(collect(["embedded:photos"], 8), 64)


def test_max_and_min_of_several_neurons(engine, spurious, settings, dataset, tmp_path):
    backgrounds = fd.Classifier.load("embedded:background")
    images = [PHOTO.path, fd.ImageInput("own", PHOTO.path, PHOTO.prompt, "sneaker")]
    up, down = fd.neuron_counterfactuals(
        engine, images, spurious, [76, "3"], ["max", "min"], dataset=dataset,
        backgrounds=backgrounds, settings=settings,
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


def test_the_users_mask_wins(engine, spurious, settings, dataset):
    mask = torch.zeros(64, 64)
    mask[8:24, 32:50] = 1
    item = fd.ImageInput("x", PHOTO.path, mask=mask)
    (e,) = fd.neuron_counterfactuals(
        engine, item, spurious, 76, "min", dataset=dataset, settings=settings
    )
    assert torch.equal(e.pictures["mask"], mask)
    assert e.background_before is None  # nobody was asked


def test_a_result_does_not_depend_on_the_others(engine, spurious, settings, dataset):
    call = {"dataset": dataset, "settings": settings}
    others = [p.path for p in world.photos()[:2]]
    many = fd.neuron_counterfactuals(engine, [*others, PHOTO.path], spurious, 76, "max", **call)
    (last,) = (e for e in many if e.id.startswith(PHOTO.id))
    turned = fd.neuron_counterfactuals(engine, [PHOTO.path, *others], spurious, 76, "max", **call)
    assert torch.equal(last.image, next(turned).image)


def test_same_photo_with_two_targets(engine, spurious, settings, dataset):
    """Targets mean nothing here, but a table for counterfactuals may be given again."""
    items = [fd.ImageInput("x", PHOTO.path, target=target) for target in ("bag", "boot")]
    explanations = fd.neuron_counterfactuals(
        engine, items, spurious, 76, "min", dataset=dataset, settings=settings
    )
    assert [e.id for e in explanations] == ["x-neuron-76-min", "x-neuron-76-min-2"]


def test_one_bad_image_fails_alone(engine, spurious, settings, dataset, tmp_path):
    items = [fd.ImageInput("bad", tmp_path / "nowhere.png"), fd.ImageInput("good", PHOTO.path)]
    call = {"dataset": dataset, "settings": settings}
    bad, good = fd.neuron_counterfactuals(engine, items, spurious, 76, "min", **call)
    assert (bad.status, good.status) == ("failed", "done")
    assert bad.id == "bad-neuron-76-min" and "nowhere.png" in bad.save(tmp_path)["error"]


def test_a_tight_mask_is_smaller(engine, spurious, settings, dataset):
    soft, tight = (
        next(
            fd.neuron_counterfactuals(
                engine, PHOTO.path, spurious, 76, "min", dataset=dataset,
                settings=replace(settings, mask_edge=edge),
            )
        ).pictures["mask"]
        for edge in ("soften", "tighten")
    )  # fmt: skip
    assert tight.sum() < 0.7 * soft.sum() and (tight == 1).any() and (tight == 0).any()
    with pytest.raises(fd.UserError, match="mask_edge must be one of soften, tighten, got 'x'"):
        replace(settings, mask_edge="x")


def test_errors_come_with_the_call(engine, spurious, settings):
    for images, neurons, directions, words in (
        ([], 3, "max", "images is empty"),
        ([PHOTO.path], 99999, "max", "neuron 99999 does not exist"),
        ([PHOTO.path], "x", "max", "neuron x does not exist"),
        ([PHOTO.path], 3, "other", "direction must be max or min, got 'other'"),
        ([PHOTO.path] * 3, [3, 4], "max", "2 neurons for 3 images"),
        ([PHOTO.path] * 3, 3, ["max", "min"], "2 directions for 3 images"),
    ):
        with pytest.raises(fd.UserError, match=words):
            fd.neuron_counterfactuals(
                engine, images, spurious, neurons, directions, settings=settings
            )


def test_progress_adds_up(engine, spurious, settings, dataset):
    done = []
    explanations = fd.neuron_counterfactuals(
        engine, [PHOTO.path] * 3, spurious, 76, "min", dataset=dataset, settings=settings,
        on_progress=done.append,
    )  # fmt: skip
    assert len(list(explanations)) == 3 and sum(done) == pytest.approx(3)


def test_without_injection_and_blending(engine, spurious, settings, dataset):
    settings = replace(settings, injection_fraction=0.0, blending_fraction=0.0, regularisers=())
    (e,) = fd.neuron_counterfactuals(
        engine, PHOTO.path, spurious, 76, "min", dataset=dataset, settings=settings
    )
    assert e.status == "done" and e.result.job.injection is None


def test_the_best_background_word_is_the_start(engine, spurious, settings, dataset):
    """Of the unchanged prompt and the others, the one that pleases the neuron most at first."""
    settings = replace(settings, injection_fraction=0.0, blending_fraction=0.0)
    item = fd.ImageInput("x", PHOTO.path, PHOTO.prompt, "sneaker", background="grass")

    def first_loss(item, words):
        (e,) = fd.neuron_counterfactuals(
            engine, item, spurious, 76, "min", dataset=dataset,
            settings=replace(settings, background_words=words),
        )  # fmt: skip
        return e.edited_prompt, e.history[0]["neuron_loss"]

    losses = dict(first_loss(item, words) for words in ((), ("brick",), ("gravel",), ("plain",)))
    assert PHOTO.prompt in losses
    chosen, loss = first_loss(item, ("grass", "brick", "gravel", "plain"))
    assert losses[chosen] == loss == min(losses.values())
    assert first_loss(replace(item, background=None), ("brick",))[0] == PHOTO.prompt
