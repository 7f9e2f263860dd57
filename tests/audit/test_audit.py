"""The audit end to end on a few photos, its command, and its page."""

import json
from dataclasses import replace

import pytest
import torch

import fastdigin as fd
from fastdigin import cli, embedded
from fastdigin.audit import Audit, audit, embedded_attributes
from fastdigin.audit.findings import Effect, Explanation, Finding, Pair, correlation
from fastdigin.models.classifier import Classifier
from fastdigin.report.audit_page import write_audit_page

TABLE = "image,source,mask\n"


@pytest.fixture(scope="module")
def sneakers(tmp_path_factory):
    """A table of two sneakers that stand on brick, with masks."""
    photos = [p for p in embedded.photos() if (p.garment, p.background) == ("sneaker", "brick")][:2]
    lines = [f"{p.path},{p.garment},{p.mask_path}\n" for p in photos]
    path = tmp_path_factory.mktemp("table") / "sneakers.csv"
    path.write_text(TABLE + "".join(lines))
    return path


def test_log_odds_are_neurons():
    clean = Classifier.load("embedded:clean")
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    p = clean.probabilities(images).double()
    expected = torch.log(p / (1 - p)).float()
    asked = clean.at_classes()
    torch.testing.assert_close(asked.activations(images), expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(asked.logits(images), clean.logits(images))
    assert asked.num_neurons == 8 and clean.num_neurons == 128


def test_the_command_audits_photos_of_one_class(sneakers, tmp_path, capsys):
    """Too few photos to find donors on grass: what counts is that all of it runs and is written."""
    out = tmp_path / "out"
    command = ["audit", str(sneakers), "--classifier", "embedded:spurious", "--json"]
    assert cli.main([*command, "--out", str(out), "--no-cache"]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert printed == [json.loads(x) for x in (out / "audit.jsonl").read_text().splitlines()]
    beside = [json.loads(x) for x in (out / "beside.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in beside} <= {"shortcut", "correlation"}
    assert len([x for x in beside if x["kind"] == "correlation"]) == 4 + 6
    assert "What does embedded:spurious go by?" in (out / "audit.html").read_text()


def test_one_photo_of_each_class_is_refused(tmp_path, capsys):
    photos = [str(p.path) for p in embedded.photos()[:2]]
    assert cli.main(["audit", *photos, "--classifier", "embedded:clean"]) == 2
    assert "no class of embedded:clean has two photos" in capsys.readouterr().err


@pytest.mark.slow
def test_the_planted_background_is_found_without_masks():
    """By swaps that the diffusion model makes: orange sneakers, none of them on grass."""
    photos = [
        fd.ImageInput(p.id, p.path, source="sneaker")
        for p in embedded.photos()
        if (p.garment, p.colour) == ("sneaker", "orange") and p.background != "grass"
    ]
    engine = fd.Engine(fd.LatentDiffusion.from_pretrained("embedded"))
    background, _ = embedded_attributes()
    found = audit(
        engine, Classifier.load("embedded:spurious"), photos[:3], [background],
        prompt="a photo of a orange {object} on {background}",
    )  # fmt: skip
    (first,) = found.findings
    assert (first.class_, first.feature) == ("sneaker", "grass")
    assert first.effect.generated and first.effect.photos >= 2 and first.effect.mean > 0.3


def test_the_page_escapes_what_it_is_told(tmp_path):
    bad = "<script>alert(1)</script>"
    grey = torch.full((3, 8, 8), 0.5)
    finding = Finding(
        class_=bad, attribute="background", feature=bad,
        effect=Effect(0.5, 0.01, 9, {bad: 0.9, "b": 0.4}, bad, {bad: (grey, 0.9)}),
        explanations=(Explanation(bad, bad, grey, grey, bad, bad, 0.1, 0.9),), neuron=3,
        pair=Pair(bad, Effect(0.3, 0.01, 8, {bad: 0.35, "b": 0.05}, None, {bad: (grey, 0.3)})),
    )  # fmt: skip
    weak = replace(finding, effect=Effect(0.0, 0.01, 9, {bad: 0.4, "b": 0.4}, None, {}, True))
    alone = correlation(bad, bad, bad, [0.9, 0.8], [0.1, 0.2])
    found = Audit(bad, 9, (bad,), {}, (finding, weak), (alone,), {bad: bad}, 1.0)
    page = write_audit_page(tmp_path, found).read_text()
    assert bad not in page and page.count("&lt;script&gt;") > 10
    told = " ".join(page.split())
    assert "adds (95% interval 48 to 52)" in told and "On 8 photos of &lt;script&gt;" in told
    empty = Audit("c", 9, ("a",), {}, (), (), {}, 1.0, unmeasured=(("a", bad, "plain"),))
    assert "No feature was found" in write_audit_page(tmp_path, empty).read_text()
