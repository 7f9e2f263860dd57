"""The statistics of findings, by hand, and the lines that the command prints."""

import json
import math

import pytest
import torch
from scipy import stats

from fastdigin.audit import findings
from fastdigin.audit.explanations import taken_most
from fastdigin.audit.findings import (
    Contrast,
    Disagreement,
    Effect,
    Explanation,
    Finding,
    Pair,
    named_features,
)
from fastdigin.audit.photos import Material


def finding(ends=("grass", "grass", "brick"), boots=(), mean=0.4, error=0.02, **changes):
    """Of sneakers. ends, boots: the features that explanations of sneakers and boots end with."""
    pixel = torch.zeros(3, 8, 8)
    shown = [("sneaker", end) for end in ends] + [("boot", end) for end in boots]
    made = tuple(
        Explanation(f"p{n}", class_, pixel, pixel + 1, "plain", end, 0.1, 0.9)
        for n, (class_, end) in enumerate(shown)
    )
    effect = Effect(mean, error, 30, {"grass": 0.9, "brick": 0.5}, "boot", {})
    values = {"class_": "sneaker", "attribute": "background", "feature": "grass"} | changes
    return Finding(effect=effect, explanations=made, **values)


def test_mean_and_error_agree_with_scipy():
    values = [0.1, 0.4, 0.2, 0.9]
    mean, error = findings.mean_and_error(values)
    assert mean == pytest.approx(0.4) and error == pytest.approx(stats.sem(values))
    assert findings.mean_and_error([0.5]) == (0.5, math.inf)


def test_surely_above():
    assert findings.surely_above(0.15, 0.15, 0.1) == pytest.approx(0.5)
    assert findings.surely_above(0.15, 0.25, 0.1) == pytest.approx(stats.norm.cdf(1))
    assert findings.surely_above(0.15, 0.2, 0.0) == 1 and findings.surely_above(0.15, 0.1, 0) == 0
    assert findings.surely_above(0.15, 9.0, math.inf) == 0


def test_confidence_is_how_surely_the_effect_is_large():
    assert finding().confidence == pytest.approx(1) and finding().found
    assert finding(mean=0.0).confidence < 1e-6 and not finding(mean=0.0).found
    assert finding(mean=0.15).confidence == pytest.approx(1 / 2)
    assert finding(mean=0.17).confidence == pytest.approx(stats.norm.cdf(1))


@pytest.mark.parametrize(
    ("ends", "boots", "named"),
    [
        (("grass", "brick", "brick"), ("plain", "plain", "plain"), {"grass", "brick", "plain"}),
        (("grass", "brick", "brick", "brick"), ("grass", "plain", "plain", "plain"),
         {"brick", "plain"}),
        ((None, None, "grass"), (), {"grass"}),
        ((None, None, None, "grass"), (), set()),
        ((), ("grass", "grass"), {"grass"}),
        (("gravel",) * 3, ("grass", "brick"), {"gravel", "grass", "brick"}),
    ],
)  # fmt: skip
def test_a_third_of_either_class_of_the_pair_makes_a_candidate(ends, boots, named):
    """Of the explanations of the class's own photos, or those of the class taken for it."""
    assert set(named_features(finding(ends, boots).explanations, "sneaker")) == named


def test_a_class_is_paired_with_the_one_that_is_taken_for_it_most():
    sure_nk = torch.tensor(
        [[0.6, 0.3, 0.1], [0.8, 0.1, 0.1], [0.0, 0.9, 0.1], [0.1, 0.5, 0.4], [0.3, 0.0, 0.7]]
    )
    own = {0: [0, 1], 1: [2, 3], 2: [4]}
    material = Material(None, [], sure_nk, own)
    assert taken_most(material) == {0: 2, 1: 0, 2: 1}
    assert taken_most(material.only([1])) == {}


def test_the_correlation_is_welchs():
    having, others = [0.9, 0.8, 1.0], [0.2, 0.4, 0.3, 0.1]
    found = findings.correlation("bag", "colour", "red", having, others)
    welch = stats.ttest_ind(having, others, equal_var=False)
    assert found.effect / found.error == pytest.approx(welch.statistic)
    assert found.photos == 7 and found.confidence > 0.99


@pytest.mark.parametrize(
    ("shown", "audited", "other", "names"),
    [
        (("brick", "grass"), (0.2, 0.9), (0.8, 0.8), "grass"),
        (("brick", "grass"), (0.2, 0.9), (0.8, 0.3), "grass"),
        (("grass", "grass"), (0.2, 0.9), (0.8, 0.8), None),  # it was there before
        (("brick", "grass"), (0.7, 0.8), (0.8, 0.8), None),  # and did little
        (("brick", "grass"), (0.2, 0.9), (0.2, 0.9), None),  # or as much to the other
    ],
)
def test_what_a_contrast_names(shown, audited, other, names):
    pixel = torch.zeros(3, 8, 8)
    assert Contrast("x", "sneaker", pixel, pixel, *shown, *audited, *other).names == names


def compared(own, other, ends=("grass", "grass", "plain")):
    """own, other: what grass adds to either classifier's confidence in sneaker, photo by photo."""
    pixel = torch.zeros(3, 8, 8)
    effect, theirs = (
        Effect(
            sum(gains) / len(gains), float(stats.sem(gains)), len(gains), {"grass": 0.9}, "boot",
            {}, gains=gains,
        )
        for gains in (own, other)
    )  # fmt: skip
    made = tuple(
        Contrast(f"p{n}", "sneaker", pixel, pixel, "brick", end, 0.1, 0.9, 0.8, 0.8)
        for n, end in enumerate(ends)
    )
    return Disagreement(
        "sneaker", "background", "grass", effect, made, against="other", against_effect=theirs
    )


def test_the_difference_is_paired():
    """Photo by photo it is 0.4, 0.5, 0.6 and 0.5, however much the photos differ."""
    one = compared((0.1, 0.6, 0.9, 0.8), (-0.3, 0.1, 0.3, 0.3))
    error = stats.sem([0.4, 0.5, 0.6, 0.5])
    assert one.difference.mean == pytest.approx(0.5)
    assert one.difference.error == pytest.approx(error)
    surely = stats.norm.cdf((0.6 - 0.15) / stats.sem([0.1, 0.6, 0.9, 0.8]))
    assert one.confidence == pytest.approx(surely) and one.found  # the effect is the less sure one
    line = json.loads(json.dumps(findings.plain(one)))
    assert (line["kind"], line["against"], line["effect"]) == ("disagreement", "other", 0.6)
    evidence = line["evidence"]
    assert (evidence["against_effect"], evidence["difference"]) == (0.1, 0.5)
    low, high = evidence["difference_interval"]
    assert (high - low) / 2 == pytest.approx(1.96 * error, abs=1e-4)


def test_what_both_go_by_or_only_the_other_is_no_finding():
    large, none, less = (0.5, 0.6, 0.7), (0.0, 0.01, 0.02), (-0.5, -0.6, -0.7)
    assert compared(large, none).found
    assert not compared(large, large[::-1]).found
    shunned = compared(none, less)
    assert shunned.difference.mean == pytest.approx(0.61) and not shunned.found


def test_lines_keep_the_contract():
    line = json.loads(json.dumps(findings.plain(finding())))
    assert {"kind", "class", "attribute", "feature", "effect", "evidence", "confidence"} == set(
        line
    )
    assert line["kind"] == "shortcut" and line["effect"] == 0.4 and line["confidence"] == 1
    assert line["evidence"]["explanations_naming_it"] == 2
    assert line["evidence"]["pair"] is None
    boots = Effect(0.3, 0.1, 20, {"grass": 0.4, "brick": 0.1}, "boot", {})
    pair = findings.plain(finding(pair=Pair("boot", boots)))["evidence"]["pair"]
    assert pair == {"class": "boot", "effect": 0.3, "interval": [0.104, 0.496], "photos": 20}
    bare = findings.plain(finding(pair=Pair("boot", None)))["evidence"]["pair"]
    assert bare == {"class": "boot", "effect": None}
    alone = findings.plain(findings.correlation("bag", "colour", "red", [0.5], [0.1, 0.2]))
    assert alone["kind"] == "correlation" and alone["evidence"]["standard_error"] is None
