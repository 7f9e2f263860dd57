"""The audit of one classifier against another: its pictures, its errors, and its command."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import fastdigin as fd
from fastdigin import cli, embedded
from fastdigin.audit import audit, disagreements, embedded_attributes
from fastdigin.audit.effects import Swaps
from fastdigin.audit.photos import Material
from fastdigin.audit.search import PROMPT
from fastdigin.models.classifier import Classifier
from fastdigin.tasks.disagreement import Disagreements
from fastdigin.tasks.sources import NO_TOOLS

SNEAKER = 5


@pytest.fixture
def tiny(monkeypatch):
    """One pair of pictures of a class, which are only searched for."""
    monkeypatch.setattr(disagreements, "CONTRASTS", 1)
    monkeypatch.setattr(disagreements, "ITERATIONS", 0)
    monkeypatch.setattr(disagreements, "STEPS", 5)


@pytest.fixture(scope="module")
def spurious():
    return Classifier.load("embedded:spurious")


@pytest.fixture(scope="module")
def engine():
    return fd.Engine(fd.LatentDiffusion.from_pretrained("embedded"))


@pytest.fixture(scope="module")
def sneakers(tmp_path_factory):
    """A table of three sneakers on every background, with masks."""
    kinds = {}
    for photo in embedded.photos():
        if photo.garment == "sneaker":
            kinds.setdefault(photo.background, []).append(photo)
    chosen = [photo for group in kinds.values() for photo in group[:3]]
    path = tmp_path_factory.mktemp("table") / "sneakers.csv"
    lines = [f"{p.path},{p.garment},{p.mask_path}\n" for p in chosen]
    path.write_text("image,source,mask\n" + "".join(lines))
    return path


def test_the_command_tells_what_only_the_audited_classifier_goes_by(
    tiny, sneakers, tmp_path, capsys
):
    """The grass that was planted in the training photos of spurious, and of no other."""
    command = ["audit", str(sneakers), "--json", "--no-cache", "--out", str(tmp_path)]
    robust = ["--against", "embedded:robust"]
    assert cli.main([*command, "--classifier", "embedded:spurious", *robust]) == 0
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (line["class"], line["attribute"], line["feature"]) == ("sneaker", "background", "grass")
    assert line["kind"] == "disagreement" and line["against"] == "embedded:robust"
    evidence = line["evidence"]
    assert line["effect"] > 0.4 > 0.15 > evidence["against_effect"]
    apart = line["effect"] - evidence["against_effect"]
    assert evidence["difference"] == pytest.approx(apart, abs=2e-4)
    page = " ".join((tmp_path / "audit.html").read_text().split())
    assert "What does embedded:spurious go by that embedded:robust does not?" in page
    assert "takes what stands on grass for a sneaker; embedded:robust does not" in page

    spurious = ["--against", "embedded:spurious"]
    assert cli.main([*command, "--classifier", "embedded:robust", *spurious]) == 0
    assert capsys.readouterr().out == ""


def test_without_masks_both_are_measured_on_the_same_generated_swaps(tiny, engine, spurious):
    """Orange sneakers, none of them on grass."""
    photos = [
        fd.ImageInput(p.id, p.path, source="sneaker")
        for p in embedded.photos()
        if (p.garment, p.colour) == ("sneaker", "orange") and p.background != "grass"
    ]
    background, _ = embedded_attributes()
    found = audit(
        engine, spurious, photos[:3], [background], against=Classifier.load("embedded:robust"),
        prompt="a photo of a orange {object} on {background}",
    )  # fmt: skip
    (first,) = found.findings
    assert (first.class_, first.feature) == ("sneaker", "grass")
    assert first.effect.generated and first.effect.photos == first.against_effect.photos >= 2
    assert first.effect.mean > 0.3 and abs(first.against_effect.mean) < 0.15


def test_pictures_are_the_disagreements_of_the_best_word(tiny, engine, spurious):
    """Each word alone, as a run of fastdigin.disagreements: the one of the smallest loss."""
    robust = Classifier.load("embedded:robust")
    attributes = embedded_attributes()
    swaps = Swaps(engine, Material(spurious, [], torch.empty(0, 8), {}), seed=3, tools=NO_TOOLS)
    contrasted = disagreements.Contrasted(swaps, robust, {SNEAKER: SNEAKER}, attributes, PROMPT)
    assert contrasted.count(attributes[0]) == 2
    found, failed = contrasted.explain(attributes[0], None)
    ((contrast,),) = found.values()
    assert not failed
    usual = Disagreements.default_settings(engine.model)
    few = replace(usual.optimisation, iterations=0, steps=5)
    for f, g, image in ((robust, spurious, contrast.before), (spurious, robust, contrast.after)):
        alone = []
        for feature in attributes[0].features:
            prompt = f"a photo of a red {{}} on {feature}"
            settings = replace(usual, optimisation=few, draws=1, prompt=prompt)
            alone += fd.disagreements(engine, f, g, ["sneaker"], settings=settings, seed=3)
        best = min(alone, key=lambda record: record.history[0]["total"])
        torch.testing.assert_close(image, best.image, rtol=0, atol=1e-4)
    seen = [
        float(c.probabilities(x[None])[0, SNEAKER])
        for c in (spurious, robust)
        for x in (contrast.before, contrast.after)
    ]
    told = (
        contrast.confidence_before, contrast.confidence_after,
        contrast.against_before, contrast.against_after,
    )  # fmt: skip
    assert told == pytest.approx(seen, abs=1e-4)


def test_a_classifier_against_itself_is_refused(engine, spurious):
    photos = fd.collect(["embedded:photos"], 4)
    for same in (spurious, Classifier.load("embedded:spurious")):
        with pytest.raises(fd.UserError, match="embedded:spurious, the audited.*name another"):
            audit(engine, spurious, photos, against=same)


def test_classes_that_both_know_are_compared(spurious):
    """By name, wherever the other has them; none at all is refused with both names."""

    def other(*classes):
        head = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, len(classes)))
        return Classifier(head, size=8, mean=(0,) * 3, std=(1,) * 3, classes=classes, name="own")

    known = other("boot, cowboy boot", "Sneaker", "cat")
    assert disagreements.shared_classes(spurious, known, [4, 5, 7]) == {5: 1, 7: 0}
    with pytest.raises(fd.UserError, match="embedded:spurious sees sandal, sneaker.* own has none"):
        disagreements.shared_classes(spurious, other("cat", "dog"), [4, 5])
