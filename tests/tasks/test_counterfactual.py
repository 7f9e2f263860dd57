"""Counterfactuals through the library."""

from copy import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from cli_commands import SNEAKER as PHOTO
from PIL import Image

import fastdigin as fd
from fastdigin import embedded as world
from fastdigin.engine.engine import Engine
from fastdigin.models.diffusion import LatentDiffusion
from fastdigin.photos import collect
from fastdigin.tasks import counterfactual as cf
from fastdigin.tasks.counterfactual import Counterfactuals


def pixels() -> torch.Tensor:
    with Image.open(PHOTO.path) as image:
        return torch.from_numpy(np.asarray(image) / np.float32(255)).permute(2, 0, 1)


def test_an_all_white_mask_leaves_no_background(call, tmp_path):
    (e,) = call(fd.counterfactuals, images=fd.ImageInput("x", pixels(), mask=torch.ones(64, 64)))
    assert e.background_l1 is None and e.foreground_l1 > 0
    assert e.save(tmp_path)["background_l1"] is None and fd.write_report(tmp_path).exists()


def test_figures_are_those_of_the_pictures(call, clean):
    judge = fd.Classifier.load("embedded:judge")
    (e,) = call(fd.counterfactuals, judge=judge, seed=3)
    index = clean.class_index("bag")
    with torch.no_grad():
        before = clean.probabilities(pixels()[None])[0, index]
        after = clean.probabilities(e.image[None])[0]
        judged = judge.classes[int(judge.logits(e.image[None]).argmax())]
    assert e.target_confidence_before == pytest.approx(float(before), abs=1e-6)
    assert e.target_confidence == pytest.approx(float(after[index]), abs=1e-6)
    assert e.prediction == clean.classes[int(after.argmax())]
    assert e.flipped == (e.prediction == "bag")
    assert e.judge_prediction == judged and e.seed == 3
    mask, difference = e.pictures["mask"], (e.image - pixels()).abs()
    for region, weight in (("foreground", mask), ("background", 1 - mask)):
        expected = (difference * weight).sum() / (3 * weight.sum())
        assert getattr(e, f"{region}_l1") == pytest.approx(float(expected), abs=1e-6)
    assert torch.equal(e.pictures["input_image"], pixels())
    best = e.history[e.best_iteration]
    assert best["total"] == min(row["total"] for row in e.history)


def test_blending_keeps_the_background(call):
    """With all steps blended and everything but a corner kept, only the corner can change."""
    mask = torch.zeros(64, 64)
    mask[:24, :24] = 1
    item = fd.ImageInput("x", PHOTO.path, mask=mask)
    (e,) = call(fd.counterfactuals, images=item, set={"blending_fractions": (1.0,)})
    change = (e.image - e.pictures["initial_image"]).abs().mean(0)
    assert change[:24, :24].mean() > 2 * change[40:, 40:].mean()


def test_own_classifier_of_a_user(call, own_classifier, tmp_path):
    images = [fd.ImageInput("one", PHOTO.path, source="trainer"),
              fd.ImageInput("two", PHOTO.path, source="0")]  # fmt: skip
    first, second = call(fd.counterfactuals, images=images, classifier=own_classifier, targets=2)
    assert first.prompt == "a photo of a trainer"
    assert second.prompt == "a photo of a sneaker"
    assert first.source == "sneaker, trainer"
    assert first.target == "<b>boot</b>"
    first.save(tmp_path)
    page = fd.write_report(tmp_path).read_text(encoding="utf-8")
    assert "<b>boot" not in page and "<i>mine" not in page and "&lt;b&gt;boot" in page


@pytest.mark.slow
def test_other_words_for_the_target_are_another_question(engine, clean):
    """They change the prompt, so that a folder of the one may not be taken for the other."""

    def asked(target, word=None):
        photo = replace(collect([PHOTO.path])[0], target=target)
        task = Counterfactuals(engine=engine, photos=[photo], classifier=clean, target_word=word)
        (request,) = task.requests
        return (
            request.id,
            request.fingerprint,
            task.check(request) and task._edited(request, task.check(request).photo),
        )

    item = replace(collect(PHOTO.path)[0], target="boot", target_word="cowboy boot")
    task = Counterfactuals(engine=engine, photos=[item], classifier=clean, target="bag")
    (request,) = task.requests
    assert "cowboy" not in task._edited(request, task.check(request).photo)
    plain = asked("bag")
    assert plain == asked("BAG") == asked(clean.class_index("bag"))
    other = asked("bag", "satchel")
    assert other[0] == plain[0] and other[1] != plain[1] and "satchel" in other[2]


def test_classes_of_one_word_are_told_apart_by_their_index(engine, clean):
    crane = copy(clean)
    crane.classes = ("crane", "crane, lifting crane", *clean.classes[2:])
    crane.__dict__.pop("_names", None)
    photo = collect([PHOTO.path])[0]
    ids = [
        Counterfactuals(engine=engine, photos=[photo], classifier=crane, target=n).requests[0].id
        for n in (0, 1)
    ]
    assert ids[0].endswith("to-crane-0") and ids[1].endswith("to-crane-1")


def test_a_size_or_solver_of_ones_own_is_in_the_settings(embedded, clean):
    photo = collect([PHOTO.path])[0]

    def settings(model):
        engine = Engine(model, slots=1)
        return Counterfactuals(
            engine=engine, photos=[photo], classifier=clean, target="bag"
        ).run_settings

    usual = settings(embedded)
    assert usual["image_size"] is usual["solver"] is None
    other = LatentDiffusion.load("embedded", device="cpu", size=128)
    assert settings(other)["image_size"] == 128
    other.scheduler = type(other.scheduler).from_config(other.scheduler.config, beta_end=0.013)
    assert settings(other)["solver"].startswith("DDIMScheduler ")


def test_default_settings_convince_a_classifier(engine, clean):
    (e,) = fd.counterfactuals(engine, fd.collect(["embedded:pairs"], 1), clean)
    assert e.flipped and e.target_confidence > 0.9


def test_default_settings_by_model(engine):
    assert cf.Counterfactuals.default_settings(engine.model) is cf.EMBEDDED
    other = fd.LatentDiffusion.load(str(world.model_folder()), device="cpu")
    assert cf.Counterfactuals.default_settings(other) == fd.CounterfactualSettings()
