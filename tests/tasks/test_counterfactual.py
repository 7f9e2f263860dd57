"""Counterfactuals through the library."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import fastdigin as fd
from fastdigin import embedded as world
from fastdigin.tasks import counterfactual as cf

PHOTO = next(p for p in world.photos() if p.garment == "sneaker")


@pytest.fixture
def settings(quick):
    return fd.CounterfactualSettings(
        optimisation=quick,
        null_text_steps=1,
        injection_fractions=(0.5,),
        blending_fractions=(0.0,),
    )


def pixels() -> torch.Tensor:
    with Image.open(PHOTO.path) as image:
        return torch.from_numpy(np.asarray(image) / np.float32(255)).permute(2, 0, 1)


def test_every_kind_of_image_gives_the_same(engine, clean, settings, tmp_path):
    images = [PHOTO.path, str(PHOTO.path), pixels(), Image.open(PHOTO.path),
              fd.ImageInput("mine", pixels(), source="sneaker")]  # fmt: skip
    explanations = list(fd.counterfactuals(engine, images, clean, "bag", settings=settings))
    assert [e.id for e in explanations] == [
        f"{PHOTO.id}-to-bag", f"{PHOTO.id}-to-bag-2", "image-002-to-bag", "image-003-to-bag",
        "mine-to-bag",
    ]  # fmt: skip
    for explanation in explanations[:4]:  # the same slots, and so the same bits
        assert torch.equal(explanation.image, explanations[0].image)
    for explanation in explanations:
        record = explanation.save(tmp_path)
        assert record["source"] == "sneaker" and record["target"] == "bag"
        assert record["judge_prediction"] is None and record["iterations"] == 2
        assert len(record["history"]) == 3
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [e.id for e in explanations]
    assert fd.write_report(tmp_path).exists()


def test_figures_are_those_of_the_pictures(engine, clean, settings, tmp_path):
    judge = fd.Classifier.load("embedded:judge")
    (e,) = fd.counterfactuals(
        engine, PHOTO.path, clean, ["bag"], settings=settings, judge=judge, seed=3
    )
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


def test_the_users_mask_wins(engine, clean, settings):
    mask = torch.zeros(64, 64)
    mask[8:24, 32:50] = 1
    (e,) = fd.counterfactuals(
        engine, fd.ImageInput("x", PHOTO.path, mask=mask), clean, "bag", settings=settings
    )
    assert torch.equal(e.pictures["mask"], mask)
    assert torch.equal(e.result.job.losses[1].mask.cpu(), mask)


def test_blending_keeps_the_background(engine, clean, settings):
    """With all steps blended and everything but a corner kept, only the corner can change."""
    mask = torch.zeros(64, 64)
    mask[:24, :24] = 1
    settings = replace(settings, blending_fractions=(1.0,))
    (e,) = fd.counterfactuals(
        engine, fd.ImageInput("x", PHOTO.path, mask=mask), clean, "bag", settings=settings
    )
    change = (e.image - e.pictures["initial_image"]).abs().mean(0)
    assert change[:24, :24].mean() > 2 * change[40:, 40:].mean()


def test_own_classifier_of_a_user(engine, own_classifier, settings, tmp_path):
    images = [fd.ImageInput("one", PHOTO.path, source="trainer"),
              fd.ImageInput("two", PHOTO.path, source="0")]  # fmt: skip
    first, second = fd.counterfactuals(engine, images, own_classifier, 2, settings=settings)
    assert first.prompt == "a photo of a trainer"
    assert second.prompt == "a photo of a sneaker"
    assert first.source == "sneaker, trainer"
    assert first.target == "<b>boot</b>"
    first.save(tmp_path)
    page = fd.write_report(tmp_path).read_text(encoding="utf-8")
    assert "<b>boot" not in page and "<i>mine" not in page and "&lt;b&gt;boot" in page


@pytest.mark.parametrize("objective", ["conf", "log_conf", "logits"])
def test_objectives(engine, clean, settings, objective):
    settings = replace(settings, objective=objective)
    (e,) = fd.counterfactuals(engine, PHOTO.path, clean, "bag", settings=settings)
    losses = [row["target_loss"] for row in e.history]
    assert e.status == "done" and min(losses[1:]) < losses[0]  # not the total: its minimum is best
    if objective == "conf":
        assert losses[0] == pytest.approx(1 - e.history[0]["target_confidence"])


def test_errors_come_with_the_call(engine, clean, settings):
    """Not with the first explanation: a caller sees them where the mistake is."""
    call = {"settings": settings}
    for images, targets, words in (
        ([], "bag", "images is empty"),
        ([PHOTO.path], ["bag", "boot"], "2 targets for 1 images"),
        ([PHOTO.path], "bg", "did you mean 'bag'"),
        ([PHOTO.path], None, "has no target"),
        (["nowhere.png"], "bag", "nowhere.png' does not exist"),
        (torch.rand(3, 64, 32), "bag", "not square"),
    ):
        with pytest.raises(fd.UserError, match=words):
            fd.counterfactuals(engine, images, clean, targets, **call)
    too_many = replace(settings, optimisation=fd.Settings(steps=2000))
    with pytest.raises(fd.UserError, match="1..1000, got 2000"):
        fd.counterfactuals(engine, PHOTO.path, clean, "bag", settings=too_many)
    with pytest.raises(fd.UserError, match="objective must be one of"):
        replace(settings, objective="loss")
    for fractions in ((), (1.5,)):
        with pytest.raises(fd.UserError, match="injection_fractions"):
            replace(settings, injection_fractions=fractions)


def test_one_bad_image_fails_alone(engine, clean, settings, tmp_path):
    images = [fd.ImageInput("bad", tmp_path / "nowhere.png"), PHOTO.path,
              fd.ImageInput("other", PHOTO.path, prompt="no such word")]  # fmt: skip
    by_id = {e.id: e for e in fd.counterfactuals(engine, images, clean, ["bag"], settings=settings)}
    status = {id: e.status for id, e in by_id.items()}
    assert status == {
        "bad-to-bag": "failed", f"{PHOTO.id}-to-bag": "done", "other-to-bag": "failed",
    }  # fmt: skip
    record = by_id["other-to-bag"].save(tmp_path)
    assert "'no such word'" in record["error"] and by_id["other-to-bag"].image is None
    assert record["target_confidence"] is None and record["image"] is None


def test_skip(engine, clean, settings):
    images = [fd.ImageInput("gone", "nowhere.png"), PHOTO.path]
    skip = {"gone-to-bag", f"{PHOTO.id}-to-bag"}
    call = {"settings": settings, "skip": skip}
    assert list(fd.counterfactuals(engine, images, clean, "bag", **call)) == []
    call["skip"] = {"gone-to-bag"}
    (e,) = fd.counterfactuals(engine, images, clean, "bag", **call)
    assert e.id == f"{PHOTO.id}-to-bag"


def test_progress_adds_up(engine, clean, settings):
    done = []
    images = [PHOTO.path] * 3  # more than there are slots
    call = {"settings": settings, "on_progress": done.append}
    assert len(list(fd.counterfactuals(engine, images, clean, "bag", **call))) == 3
    assert sum(done) == pytest.approx(3)


@pytest.mark.slow
def test_default_settings_convince_a_classifier(engine, clean):
    (e,) = fd.counterfactuals(engine, collect_pair(), clean)
    assert e.flipped and e.target_confidence > 0.9


def collect_pair():
    pair = world.pairs()[0]
    return fd.ImageInput("x", pair.photo.path, pair.prompt, pair.source, pair.target)


def test_default_settings_by_model(engine):
    assert cf.Counterfactuals.default_settings(engine.model) is cf.EMBEDDED
    other = fd.LatentDiffusion.load(str(world.model_folder()), device="cpu")
    assert cf.Counterfactuals.default_settings(other) == fd.CounterfactualSettings()
